//! The job of `examples/gpt2`, trained in one process: a real text, and the losses that its README
//! tells.

mod common;

use common::training::{evaluate, job, mean_loss, step, train, trainer};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/gpt2");

/// The frequencies of single bytes give a loss of 2.99: well below it, what came before was used.
#[test]
fn few_steps_lower_the_loss_of_a_text_below_that_of_its_letters() {
    let (reports, heldout) = train(&job(FOLDER, "job.toml", &["train.steps=60"]));
    let losses: Vec<f64> = reports.chunks(20).map(mean_loss).collect();
    assert!(
        losses.windows(2).all(|pair| pair[1] < 0.95 * pair[0]),
        "{losses:?}"
    );
    assert!(heldout["loss"] < 2.7, "{heldout:?}");
}

/// Takes minutes; prints the curve of the README.
#[test]
#[ignore = "takes minutes: all 600 steps of the example"]
fn the_whole_job_reaches_the_loss_that_its_readme_tells() {
    let spec = job(FOLDER, "job.toml", &[]);
    let mut trainer = trainer(&spec);
    for number in 1..=trainer.total_steps() {
        let report = step(&mut trainer, spec.train.logical_shards);
        if number == 1 || number % 100 == 0 {
            let (loss, heldout) = (report.means["loss"], evaluate(&mut trainer));
            println!("step {number}: loss {loss:.3}, held out {heldout:?}");
        }
    }
    let loss = evaluate(&mut trainer)["loss"];
    // The README says 1.565.
    assert!(loss < 1.57, "{loss}");
}
