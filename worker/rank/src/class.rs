//! What decides the bits of this process beside the job: its build, its processor and libraries,
//! and a sample of their results.

use std::fs;
use std::io;
use std::path::Path;

use muster_cluster::command::NumericsClass;

/// The class of this process; `canary` is the digest of a fixed computation.
///
/// # Errors
/// When the program's own file cannot be read.
pub fn class(canary: fn() -> String) -> io::Result<NumericsClass> {
    let program = std::env::current_exe()?;
    Ok(NumericsClass {
        build: digest(&program)?,
        canary: canary(),
        libc: libraries(),
        cpu: processor(),
        gpu: String::new(),
    })
}

/// The class as the line of JSON that a worker asks a rank's program for.
///
/// # Errors
/// As for [`class`].
pub fn probe(canary: fn() -> String) -> io::Result<String> {
    let class = class(canary)?;
    let line = serde_json::json!({
        "build": class.build, "canary": class.canary, "libc": class.libc, "cpu": class.cpu,
    });
    Ok(line.to_string())
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The files of the C and maths libraries that this process has mapped, by name and content: a
/// function of theirs may round otherwise in another version. `static` where there are none.
fn libraries() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    let mut known: Vec<String> = paths
        .filter(|path| {
            let name = path.rsplit('/').next().unwrap_or_default();
            name.starts_with("libc.so")
                || name.starts_with("libm.so")
                || name.starts_with("libc-")
                || name.starts_with("ld-musl")
        })
        .map(str::to_owned)
        .collect();
    known.sort();
    known.dedup();
    let named = known.iter().filter_map(|path| {
        let name = path.rsplit('/').next()?;
        Some(format!("{name}:{}", &digest(Path::new(path)).ok()?[..16]))
    });
    let text: Vec<String> = named.collect();
    if text.is_empty() {
        "static".to_owned()
    } else {
        text.join(" ")
    }
}

/// The architecture, and a digest of the features that the system says the processor has: libraries
/// choose their code by them.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let features = info
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let digest = blake3::hash(features.unwrap_or_default().as_bytes())
        .to_hex()
        .to_string();
    format!("{}:{}", std::env::consts::ARCH, &digest[..16])
}
