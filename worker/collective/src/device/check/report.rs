//! What a check has measured, for people.

use std::fmt;
use std::time::Duration;

use crate::device::Mode;
use crate::world::World;

/// How long one length takes in one mode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// How it was summed.
    pub mode: Mode,
    /// The length of the vector.
    pub num_elements: usize,
    /// The median of one reduction; `None` where none was timed.
    pub median: Option<Duration>,
}

impl Timing {
    /// The bytes of the vector in a second.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        let seconds = self.median?.as_secs_f64();
        let num_bytes = (self.num_elements * size_of::<f32>()) as f64;
        (seconds > 0.0).then(|| num_bytes / seconds)
    }
}

/// What one rank has measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What moved the vectors.
    pub name: String,
    /// The first world.
    pub world: World,
    /// How long the devices took to connect.
    pub connecting: Duration,
    /// The reductions that were timed, in order.
    pub timings: Vec<Timing>,
    /// From the beginning of a reduction in which a rank died to its end.
    pub loss: Option<Duration>,
    /// How long those that were left took to connect again.
    pub connecting_again: Option<Duration>,
}

impl Report {
    pub(super) fn new(name: String, world: World, connecting: Duration) -> Self {
        Self {
            name,
            world,
            connecting,
            timings: Vec::new(),
            loss: None,
            connecting_again: None,
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let World { rank, size, .. } = self.world;
        writeln!(f, "rank {rank} of {size}: {}", self.name)?;
        writeln!(f, "  devices connected in {:.1} ms", ms(self.connecting))?;
        for timing in &self.timings {
            let Some(median) = timing.median else {
                continue;
            };
            let rate = timing.bytes_per_second().unwrap_or_default() / 1e9;
            let mode = match timing.mode {
                Mode::Canonical => "canonical",
                Mode::Fast => "fast",
            };
            let (num_elements, median) = (timing.num_elements, ms(median));
            writeln!(
                f,
                "  {mode:<9} {num_elements:>10} elements {median:>10.3} ms {rate:>8.3} GB/s"
            )?;
        }
        if let Some(loss) = self.loss {
            writeln!(
                f,
                "  out of a reduction whose peer died in {:.1} ms",
                ms(loss)
            )?;
        }
        if let Some(again) = self.connecting_again {
            writeln!(f, "  connected again without it in {:.1} ms", ms(again))?;
        }
        Ok(())
    }
}
