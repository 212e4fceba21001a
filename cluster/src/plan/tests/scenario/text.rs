//! Decisions as the scenarios' files write them.

use std::collections::BTreeMap;

use crate::device::Device;
use crate::ids::RankId;
use crate::shares::Holders;
use crate::state::{Finish, Heal, Part, Poison, World};

pub(super) fn describe(world: &World) -> String {
    let World {
        history,
        generation,
        first_step,
        ranks,
        finish,
        shares,
    } = world;
    let parts = finish.iter().flat_map(|finish| &finish.parts);
    let mut parts = parts.map(part);
    let ranks = ranks.iter().map(|rank| {
        let part = parts.next().unwrap_or_default();
        let on = on_gpu(rank.device);
        format!("  {}{on} {}{part}", rank.worker, rank.shards)
    });
    let kept = match shares.as_slice() {
        [] => String::new(),
        shares => format!("  {}", kept(ranks.len(), shares, finish.as_ref())),
    };
    let verb = match finish {
        None => "from",
        Some(Finish {
            evaluated: false, ..
        }) => "goes on at",
        Some(Finish {
            evaluated: true, ..
        }) => "goes on, evaluated, at",
    };
    let ranks = ranks.collect::<String>();
    format!("{generation} {history} {verb} {first_step}:{ranks}{kept}")
}

/// Of how many shares of the optimizer's state each rank is owner and shadow, and what moves.
fn kept(size: usize, shares: &[Holders], finish: Option<&Finish>) -> String {
    let count = |rank: usize| {
        let is_owner = |one: &&Holders| one.owner.0 as usize == rank;
        let is_shadow = |one: &&Holders| one.shadow.is_some_and(|one| one.0 as usize == rank);
        let num_shadows = shares.iter().filter(is_shadow).count();
        format!("{}+{num_shadows}", shares.iter().filter(is_owner).count())
    };
    let counts: Vec<String> = (0..size).map(count).collect();
    let mut text = format!("keep {}", counts.join(","));
    let mut pairs: BTreeMap<(RankId, RankId), u32> = BTreeMap::new();
    for one in finish.iter().flat_map(|finish| &finish.moves) {
        *pairs.entry((one.from, one.to)).or_default() += 1;
    }
    for ((from, to), number) in pairs {
        text += &format!(", {number} from {from} to {to}");
    }
    if finish.is_some_and(|finish| finish.gather) {
        text += ", gather";
    }
    text
}

/// Which GPU of its worker a process has.
pub(super) fn on_gpu(device: Device) -> String {
    match device {
        Device::Cpu => String::new(),
        gpu => format!("/{gpu}"),
    }
}

fn part(part: &Part) -> String {
    let brings = match part.shards.as_slice() {
        [] => " brings nothing".to_owned(),
        shards => format!(" brings {}", list(shards)),
    };
    let takes = match &part.heal {
        None => String::new(),
        Some(Heal::Reduced { from }) => format!(" takes the reduced vector of {from}"),
        Some(Heal::State { from }) => format!(" takes the state of {}", list(from)),
    };
    brings + &takes
}

/// What the leader suspects, once it has reason to.
pub(super) fn suspicion(poison: &Poison) -> String {
    let Poison {
        step,
        shards,
        num_worlds,
    } = poison;
    match num_worlds {
        1 => String::new(),
        _ => format!(
            "    [{num_worlds} deaths at step {step} with {}]",
            list(shards)
        ),
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}
