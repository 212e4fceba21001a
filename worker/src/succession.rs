//! Decides whether a daemon takes the processes of the one before it over, or begins a new life of
//! its worker, without any. Reads and ends nothing.

use muster_cluster::command::NumericsClass;

use crate::home::Life;

/// The decision.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Succession {
    /// The life goes on, with all processes that are written down: those that ended are told as
    /// ended.
    GoesOn,
    /// A new life begins; processes that still run end first. The coordinator takes it as proof
    /// that all of the old life's have.
    Begins {
        /// Why processes that run are given up; nothing where none runs.
        gives_up: Option<String>,
    },
}

/// What a daemon finds, and what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    /// The life of the daemon before it.
    pub(crate) life: Option<&'a Life>,
    /// How many of that one's processes run.
    pub(crate) num_running: usize,
    /// What decides the bits of the ranks that this daemon would start.
    pub(crate) class: &'a NumericsClass,
}

impl Succession {
    pub(crate) fn decide(found: Found<'_>) -> Self {
        let gives_up = |reason: String| Self::Begins {
            gives_up: Some(reason),
        };
        if found.num_running == 0 {
            return Self::Begins { gives_up: None };
        }
        let Some(life) = found.life else {
            return gives_up("which life of the worker they are from is not known".to_owned());
        };
        let theirs = NumericsClass::from(life.class.clone());
        match found.class.difference(&theirs) {
            Some(difference) => gives_up(format!("this daemon has {difference}")),
            None => Self::GoesOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_proto::v1;

    fn life() -> Life {
        Life {
            incarnation: 5,
            class: v1::NumericsClass::default(),
        }
    }

    #[test]
    fn a_life_goes_on_while_a_process_of_it_runs_in_the_same_class() {
        let (life, class) = (life(), NumericsClass::from(v1::NumericsClass::default()));
        let found = Found {
            life: Some(&life),
            num_running: 1,
            class: &class,
        };
        assert_eq!(Succession::decide(found), Succession::GoesOn);
        let none_runs = Found {
            num_running: 0,
            ..found
        };
        let begins = Succession::Begins { gives_up: None };
        assert_eq!(Succession::decide(none_runs), begins);
    }

    #[test]
    fn whoever_gives_processes_up_says_why() {
        let (life, class) = (life(), NumericsClass::from(v1::NumericsClass::default()));
        let found = Found {
            life: Some(&life),
            num_running: 2,
            class: &class,
        };
        let other = NumericsClass {
            build: "newer".to_owned(),
            ..class.clone()
        };
        let cases = [
            (
                Found {
                    life: None,
                    ..found
                },
                "not known",
            ),
            (
                Found {
                    class: &other,
                    ..found
                },
                "another build of the program",
            ),
        ];
        for (found, expected) in cases {
            let Succession::Begins {
                gives_up: Some(why),
            } = Succession::decide(found)
            else {
                panic!("{expected}: it takes them over");
            };
            assert!(why.contains(expected), "{why}");
        }
    }
}
