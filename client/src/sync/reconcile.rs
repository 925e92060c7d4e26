//! What is to be done with an item: decided from what this computer and the relay agreed on last, what lies here, and
//! what the relay says. Pure.

use super::place::Sig;
use belay_protocol::id::RevisionId;

/// What the relay says of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its revision.
    pub revision: RevisionId,
    /// Its content; `None`: it is deleted.
    pub sig: Option<Sig>,
}

/// What both agreed on last; the same form.
pub type Base = Head;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Both have the same: note it.
    Agree,
    /// The relay's content comes here.
    Fetch,
    /// It is deleted at the relay, and goes here.
    Remove,
    /// What lies here goes to the relay.
    Push,
    /// It was deleted here, and goes at the relay.
    Delete,
}

/// Decides. `local`: what lies here; `head`: `None` if the relay does not know of the item.
#[must_use]
pub fn decide(base: Option<&Base>, local: Option<&Sig>, head: Option<&Head>) -> Action {
    let based = base.and_then(|base| base.sig.as_ref());
    let changed_here = local != based;
    let changed_there = head.map(|head| head.revision) != base.map(|base| base.revision);
    let there = head.and_then(|head| head.sig.as_ref());
    match (changed_here, changed_there) {
        (false, false) => Action::Nothing,
        (true, false) if local.is_some() => Action::Push,
        (true, false) => Action::Delete,
        _ if local == there => Action::Agree,
        // An edit beats a deletion, wherever it was made.
        (_, true) if local.is_none() => Action::Fetch,
        (true, true) => Action::Push,
        (false, true) if there.is_none() => Action::Remove,
        (false, true) => Action::Fetch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_protocol::item::Digest;

    fn sig(content: u8) -> Sig {
        Sig { digest: Digest([content; 32]), size: 1, meta: String::new() }
    }

    fn head(revision: u8, content: Option<u8>) -> Head {
        Head { revision: RevisionId([revision; 16]), sig: content.map(sig) }
    }

    #[test]
    fn every_case_has_its_answer() {
        use Action::*;
        // What both had (revision, content), what lies here, what the relay has.
        type Case = (Option<(u8, Option<u8>)>, Option<u8>, Option<(u8, Option<u8>)>, Action);
        let cases: &[Case] = &[
            (None, None, None, Nothing),
            (None, Some(1), None, Push),
            (None, None, Some((1, Some(1))), Fetch),
            (None, None, Some((1, None)), Agree),
            (None, Some(1), Some((1, Some(1))), Agree),
            (None, Some(2), Some((1, Some(1))), Push),
            (None, Some(2), Some((1, None)), Push),
            (Some((1, Some(1))), Some(1), Some((1, Some(1))), Nothing),
            (Some((1, Some(1))), Some(2), Some((1, Some(1))), Push),
            (Some((1, Some(1))), None, Some((1, Some(1))), Delete),
            (Some((1, Some(1))), Some(1), Some((2, Some(2))), Fetch),
            (Some((1, Some(1))), Some(1), Some((2, Some(1))), Agree),
            (Some((1, Some(1))), Some(1), Some((2, None)), Remove),
            (Some((1, Some(1))), Some(2), Some((2, Some(3))), Push),
            (Some((1, Some(1))), Some(2), Some((2, Some(2))), Agree),
            (Some((1, Some(1))), Some(2), Some((2, None)), Push),
            (Some((1, Some(1))), None, Some((2, Some(2))), Fetch),
            (Some((1, Some(1))), None, Some((2, None)), Agree),
            // Gone at the relay, after everything was read anew.
            (Some((1, Some(1))), Some(1), None, Remove),
            (Some((1, Some(1))), Some(2), None, Push),
            (Some((1, Some(1))), None, None, Agree),
            (Some((1, None)), None, Some((1, None)), Nothing),
            (Some((1, None)), Some(1), Some((1, None)), Push),
            (Some((1, None)), None, Some((2, Some(1))), Fetch),
        ];
        for (base, local, there, wanted) in cases {
            let make = |of: &Option<(u8, Option<u8>)>| of.map(|(revision, content)| head(revision, content));
            let (base, there, local) = (make(base), make(there), local.map(sig));
            assert_eq!(decide(base.as_ref(), local.as_ref(), there.as_ref()), *wanted, "{base:?} {local:?} {there:?}");
        }
    }
}
