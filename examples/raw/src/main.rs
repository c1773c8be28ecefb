//! An agent without an SDK: generated stubs, a Unix socket, and what protos/antiphon/v1/agent_service.proto says.

use std::{collections::HashSet, time::Duration};

use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

#[allow(clippy::all)]
mod v1 {
    tonic::include_proto!("antiphon.v1");
}
use v1::{agent_service_client::AgentServiceClient, payload::Content, result::Outcome, *};

const SCHEMA: &str = r#"{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}"#;

#[derive(Deserialize, Serialize)]
struct Text {
    text: String,
}

/// The work: whatever it says, louder.
fn shout(input: Text) -> Text {
    Text { text: input.text.to_uppercase() }
}

fn hello() -> WorkRequest {
    let shout = Capability {
        name: "text.shout".into(),
        version: "1".into(),
        input_schema: SCHEMA.into(),
        output_schema: SCHEMA.into(),
        effect: Effect::Pure as i32,
        idempotent: true,
        ..Default::default()
    };
    let description = AgentDescription {
        name: "shouter".into(),
        runtime: "rust".into(),
        capabilities: vec![shout],
        concurrency: 8,
        prefetch: 8,
        ..Default::default()
    };
    let hello = AgentHello { description: Some(description), protocol_version: 1 };
    WorkRequest { hello: Some(hello), ..Default::default() }
}

/// What JSON there is in an assignment that this agent can work on; else the failure that says why not.
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
            let data = serde_json::to_vec(&shout(input)).expect("a text is JSON");
            Outcome::Output(Payload { content: Some(Content::Inline(data)), ..Default::default() })
        }
        Err((kind, message)) => Outcome::Failure(Failure { kind: kind as i32, message, ..Default::default() }),
    };
    v1::Result { attempt_id, outcome: Some(outcome) }
}

/// One stream, until it ends or breaks. Work is done as it comes, so there is never anything to cancel.
async fn attach(path: String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dial = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
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
