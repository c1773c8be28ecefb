//! An agent without an SDK: generated stubs, a Unix socket, and what protos/antiphon/v1/agent_service.proto says.

use hyper_util::rt::TokioIo;
use std::{collections::HashSet, error::Error, time::Duration};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

#[allow(clippy::all)]
mod v1 {
    tonic::include_proto!("antiphon.v1");
}
use v1::{agent_service_client::AgentServiceClient, payload::Content, result::Outcome, *};

const SCHEMA: &str = r#"{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}"#;

#[derive(serde::Deserialize, serde::Serialize)]
struct Text {
    text: String,
}

/// The work: whatever it says, louder.
fn shout(input: Text) -> Text {
    Text { text: input.text.to_uppercase() }
}

fn hello() -> WorkRequest {
    let mut shout = Capability { name: "text.shout".into(), version: "1".into(), ..Default::default() };
    (shout.input_schema, shout.output_schema) = (SCHEMA.into(), SCHEMA.into());
    shout.effect = Effect::Pure as i32;
    let mut description = AgentDescription { name: "shouter".into(), ..Default::default() };
    (description.concurrency, description.prefetch, description.runtime) = (8, 8, "rust".into());
    description.capabilities.push(shout);
    let hello = AgentHello { description: Some(description), protocol_version: 1 };
    WorkRequest { hello: Some(hello), ..Default::default() }
}

/// The input of an assignment that this agent can work on; else the failure that says why not.
fn input_of(assignment: Assignment) -> std::result::Result<Text, (FailureKind, String)> {
    if (assignment.capability.as_str(), assignment.version.as_str()) != ("text.shout", "1") {
        return Err((FailureKind::Permanent, "this agent has no such capability".into()));
    }
    let payload = assignment.input.unwrap_or_default();
    match payload.content {
        Some(Content::Inline(data)) if ["", "application/json"].contains(&payload.media_type.as_str()) => {
            serde_json::from_slice(&data).map_err(|error| (FailureKind::InvalidInput, error.to_string()))
        }
        _ => Err((FailureKind::InvalidInput, "the input is not JSON that came inline".into())),
    }
}

fn work(assignment: Assignment) -> v1::Result {
    let attempt_id = assignment.attempt_id.clone();
    let outcome = match input_of(assignment) {
        Ok(input) => {
            let content = Content::Inline(serde_json::to_vec(&shout(input)).expect("a text is JSON"));
            Outcome::Output(Payload { content: Some(content), ..Default::default() })
        }
        Err((kind, message)) => Outcome::Failure(Failure { kind: kind as i32, message, ..Default::default() }),
    };
    v1::Result { attempt_id, outcome: Some(outcome) }
}

/// One stream, until it ends or breaks. Work is done as it comes, so there is never anything to cancel.
async fn attach(path: String) -> std::result::Result<(), Box<dyn Error>> {
    let dial = tower::service_fn(move |_| {
        let stream = UnixStream::connect(path.clone());
        async { stream.await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(dial).await?;
    let (up, requests) = mpsc::channel(16);
    up.send(hello()).await?;
    let mut up = Some(up);
    let mut responses = AgentServiceClient::new(channel).work(ReceiverStream::new(requests)).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let mut seen = HashSet::new(); // an attempt may be assigned twice
        let new = response.assignments.into_iter().filter(|one| seen.insert(one.attempt_id.clone()));
        let results: Vec<_> = new.map(work).collect();
        if let (Some(up), false) = (&up, results.is_empty()) {
            up.send(WorkRequest { results, ..Default::default() }).await?;
        }
        if response.drain {
            up = None; // closes our side, when what was said has been sent
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let path = std::env::var("ANTIPHON_SOCKET").expect("start me through a sidecar: ANTIPHON_SOCKET is not set");
    loop {
        if let Err(error) = attach(path.clone()).await {
            eprintln!("no stream, dialling again: {error}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
