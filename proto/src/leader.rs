//! How clients and workers find the coordinator that leads: a coordinator that does not lead refuses
//! a call and names the leader where it knows one; a caller goes there, or tries the next address.
//! A [`Route`] decides where; the sockets and the waits are the caller's.

use std::time::Duration;

use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::address;

/// The key of a refusal's metadata that names the leader's address; empty where none is known.
const LEADER: &str = "muster-leader";

/// The key of a request's metadata that says that an older state is good enough.
pub const STALE: &str = "muster-stale";

/// The refusal of a coordinator that does not lead. It names the leader's address, if it is known.
#[must_use]
pub fn not_leading(leader: Option<&str>) -> Status {
    let text = match leader {
        Some(leader) => format!("this coordinator does not lead; {leader} does"),
        None => "no coordinator leads at the moment, as far as this one knows; a majority of them \
                 must reach each other"
            .to_owned(),
    };
    let mut status = Status::new(Code::Unavailable, text);
    if let Ok(leader) = leader.unwrap_or_default().parse() {
        status.metadata_mut().insert(LEADER, leader);
    }
    status
}

/// Whether a status is the refusal of a coordinator that does not lead.
#[must_use]
pub fn is_not_leading(status: &Status) -> bool {
    status.metadata().contains_key(LEADER)
}

/// The address of the leader, as a coordinator says that does not lead.
#[must_use]
pub fn named_by(status: &Status) -> Option<String> {
    let leader = status.metadata().get(LEADER)?.to_str().ok()?;
    (!leader.is_empty()).then(|| leader.to_owned())
}

/// How long one of several coordinators may take to answer: one that takes the connection and says
/// nothing must not use up the time of the others.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// When a caller asks the coordinator that its route names now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Without a wait: it was named as the leader.
    AtOnce,
    /// Behind a wait: nobody knows better yet.
    AfterAWait,
}

/// Which of several coordinators to ask, after all that they have said. An address that one of them
/// named is gone to even where it was not given, but only the given ones are kept: where it fails,
/// they are asked again.
#[derive(Clone, Debug)]
pub struct Route {
    given: Vec<String>,
    /// The one of them that is asked where no other is named.
    at: usize,
    /// Who was named as the leader since.
    hint: Option<String>,
    /// Who has refused since the last wait. None of them is gone back to at once: two that name each
    /// other would be asked without end.
    refused: Vec<String>,
}

impl Route {
    /// Begins at the first of these addresses.
    ///
    /// # Errors
    /// When there is none, or when one is no address; the text says what is wrong.
    pub fn new(given: Vec<String>) -> Result<Self, String> {
        if given.is_empty() {
            return Err("no address of a coordinator is given".to_owned());
        }
        for address in &given {
            address::endpoint(address)?;
        }
        Ok(Self {
            given,
            at: 0,
            hint: None,
            refused: Vec::new(),
        })
    }

    /// Whom to ask now.
    #[must_use]
    pub fn current(&self) -> &str {
        self.hint.as_ref().unwrap_or(&self.given[self.at])
    }

    /// Whether another one can be asked where this one is silent.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.given.len() > 1 || self.hint.is_some()
    }

    /// What can be connected to at the present address.
    ///
    /// # Errors
    /// When somebody named what is no address.
    pub fn endpoint(&self) -> Result<Endpoint, String> {
        if self.has_others() {
            address::endpoint_of_several(self.current())
        } else {
            address::endpoint(self.current())
        }
    }

    /// The present one did not answer as asked, with this status.
    pub fn heard(&mut self, status: &Status) -> Next {
        if is_not_leading(status) {
            self.refused(named_by(status).as_deref())
        } else {
            self.failed()
        }
    }

    /// The present one does not lead, and names the leader where it knows one.
    pub fn refused(&mut self, leader: Option<&str>) -> Next {
        self.refused.push(self.current().to_owned());
        let unasked = leader.filter(|leader| !self.refused.iter().any(|asked| asked == leader));
        let Some(leader) = unasked else {
            return self.failed();
        };
        self.hint = Some(leader.to_owned());
        Next::AtOnce
    }

    /// The present one cannot be reached, or is silent.
    pub fn failed(&mut self) -> Next {
        let next = |at: usize| (at + 1) % self.given.len();
        let mut at = next(self.at);
        // It was asked just now, since somebody named it.
        if self.given[at] == self.current() {
            at = next(at);
        }
        (self.at, self.hint) = (at, None);
        self.refused.clear();
        Next::AfterAWait
    }

    /// The present one leads: what others said before counts no more.
    pub fn answered(&mut self) {
        self.refused.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(given: &[&str]) -> Route {
        Route::new(given.iter().map(ToString::to_string).collect()).unwrap()
    }

    #[test]
    fn those_that_fail_are_asked_in_turn() {
        let mut route = route(&["a:1", "b:1", "c:1"]);
        let mut asked = Vec::new();
        for _ in 0..4 {
            asked.push(route.current().to_owned());
            assert_eq!(route.failed(), Next::AfterAWait);
        }
        assert_eq!(asked, ["a:1", "b:1", "c:1", "a:1"]);
        assert_eq!(route.refused(None), Next::AfterAWait);
        assert_eq!(route.current(), "c:1");
    }

    #[test]
    fn a_leader_that_is_named_is_asked_at_once_and_stays() {
        let mut route = route(&["a:1", "b:1", "c:1"]);
        assert_eq!(route.refused(Some("c:1")), Next::AtOnce);
        assert_eq!(route.current(), "c:1");
        route.answered();
        assert_eq!(route.current(), "c:1");
        assert_eq!(route.failed(), Next::AfterAWait);
        assert_eq!(route.current(), "b:1");
    }

    #[test]
    fn a_leader_that_was_not_given_is_asked_and_displaces_nobody() {
        let mut route = route(&["a:1", "b:1"]);
        assert_eq!(route.refused(Some("x:1")), Next::AtOnce);
        assert_eq!(route.current(), "x:1");
        assert_eq!(route.failed(), Next::AfterAWait);
        assert_eq!(route.current(), "b:1");
        assert_eq!(route.refused(Some("x:1")), Next::AtOnce);
        assert_eq!(route.refused(Some("y:1")), Next::AtOnce);
        assert_eq!(route.current(), "y:1");
        assert_eq!(route.refused(None), Next::AfterAWait);
        assert_eq!(route.current(), "a:1");
    }

    #[test]
    fn a_leader_that_is_gone_keeps_nobody_from_being_asked() {
        let mut route = route(&["a:1", "b:1", "c:1"]);
        let mut asked = Vec::new();
        for _ in 0..4 {
            asked.push(route.current().to_owned());
            assert_eq!(route.refused(Some("b:1")), Next::AtOnce);
            assert_eq!(route.failed(), Next::AfterAWait);
        }
        assert_eq!(asked, ["a:1", "c:1", "a:1", "c:1"]);
    }

    #[test]
    fn two_that_name_each_other_are_left_for_the_third() {
        let mut route = route(&["a:1", "b:1", "c:1"]);
        assert_eq!(route.refused(Some("b:1")), Next::AtOnce);
        assert_eq!(route.refused(Some("a:1")), Next::AfterAWait);
        assert_eq!(route.current(), "c:1");
    }

    #[test]
    fn one_that_names_itself_is_asked_again_behind_a_wait() {
        let mut route = route(&["a:1"]);
        assert_eq!(route.refused(Some("a:1")), Next::AfterAWait);
        assert_eq!(route.current(), "a:1");
    }

    #[test]
    fn who_was_elected_behind_a_wait_is_gone_back_to_at_once() {
        let mut route = route(&["a:1", "b:1"]);
        assert_eq!(route.refused(None), Next::AfterAWait);
        assert_eq!(route.current(), "b:1");
        assert_eq!(route.refused(Some("a:1")), Next::AtOnce);
        route.answered();
        assert_eq!(route.refused(Some("b:1")), Next::AtOnce);
    }

    #[test]
    fn a_refusal_is_told_from_a_failure_by_its_status() {
        let mut route = route(&["a:1", "b:1", "c:1"]);
        assert_eq!(route.heard(&not_leading(Some("c:1"))), Next::AtOnce);
        assert_eq!(route.current(), "c:1");
        assert_eq!(
            route.heard(&Status::unavailable("it ends")),
            Next::AfterAWait
        );
        assert_eq!(route.current(), "b:1");
    }

    #[test]
    fn others_are_known_where_several_are_given_or_one_is_named() {
        assert!(route(&["a:1", "b:1"]).has_others());
        let mut route = route(&["a:1"]);
        assert!(!route.has_others());
        let _ = route.refused(Some("no address"));
        assert!(route.has_others() && route.endpoint().is_err());
    }

    #[test]
    fn what_is_no_address_begins_no_route() {
        assert!(Route::new(Vec::new()).is_err());
        let reason = Route::new(vec!["a:1".to_owned(), "b".to_owned()]).unwrap_err();
        assert!(reason.starts_with("b: there is no port"), "{reason}");
    }

    #[test]
    fn a_refusal_names_the_leader() {
        let known = not_leading(Some("10.0.0.2:4600"));
        assert!(is_not_leading(&known) && known.code() == Code::Unavailable);
        assert_eq!(named_by(&known).as_deref(), Some("10.0.0.2:4600"));
        let unknown = not_leading(None);
        assert!(is_not_leading(&unknown));
        assert_eq!(named_by(&unknown), None);
        assert!(!is_not_leading(&Status::unavailable("it ends")));
    }
}
