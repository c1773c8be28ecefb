//! Makes the stubs from the contracts of this checkout. protox is a protoc in Rust, so that none has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = "../../protos";
    println!("cargo::rerun-if-changed={protos}");
    let descriptors = protox::compile(["antiphon/v1/agent_service.proto"], [protos])?;
    tonic_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
