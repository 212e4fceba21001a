//! Asks the program that ranks run what decides its bits.

use std::path::Path;

use muster_proto::v1;
use tokio::process::Command;

use crate::run::Error;

/// Runs `<program> rank --probe` and reads its one line of JSON.
pub(crate) async fn probe(program: &Path) -> Result<v1::NumericsClass, Error> {
    let failed = |reason: String| Error::Probe {
        program: program.to_owned(),
        reason,
    };
    let output = Command::new(program)
        .args(["rank", "--probe"])
        .output()
        .await;
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, stderr.trim())));
    }
    let line: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(format!("it printed no JSON: {error}")))?;
    let part = |name: &str| {
        let text = line.get(name).and_then(serde_json::Value::as_str);
        text.map(str::to_owned)
            .ok_or_else(|| failed(format!("it printed no {name:?}")))
    };
    Ok(v1::NumericsClass {
        build: part("build")?,
        canary: part("canary")?,
        libc: part("libc")?,
        cpu: part("cpu")?,
        gpu: String::new(),
    })
}
