//! The rules for names that stand for models: which there are, and which is asked first.

use super::check::unknown;
use super::models::{Model, price_of};
use super::raw::{RawRoute, RawTarget, Targets};
use belay_protocol::message::UnitKind;
use belay_protocol::money::NanoUsd;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most models of an alias: its offers are numbered in a byte, and all of them are priced for a hold.
const MOST_TARGETS: usize = 8;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Its models, at least one; the first is asked first unless something else is said.
    pub targets: Vec<Target>,
    /// Which of those that fit a request is asked first.
    pub prefer: Prefer,
    /// None is asked whose million input tokens cost more, in nano-USD.
    pub max_input: Option<NanoUsd>,
    /// The same for output.
    pub max_output: Option<NanoUsd>,
}

impl Route {
    /// It says what its models may cost.
    pub(crate) fn has_bounds(&self) -> bool {
        self.max_input.is_some() || self.max_output.is_some()
    }
}

/// One model of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its name in the configuration.
    pub model: String,
    /// Its share of the requests, beside the others that have one; those without come after them.
    pub weight: Option<u32>,
}

/// Which model is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefer {
    /// As they are named, after those that have weights, which are drawn.
    #[default]
    Order,
    /// The one that will cost least for the request at hand.
    Cheapest,
}

/// A route as it is used. Errors: what is wrong, and what to write.
pub(super) fn route(raw: Targets, models: &BTreeMap<String, Arc<Model>>) -> Result<Route, String> {
    let raw = match raw {
        Targets::One(target) => RawRoute { models: vec![RawTarget::Name(target)], ..RawRoute::default() },
        Targets::Several(models) => RawRoute { models, ..RawRoute::default() },
        Targets::Rules(rules) => rules,
    };
    let targets: Vec<Target> = raw.models.into_iter().map(target).collect::<Result<_, _>>()?;
    if !(1..=MOST_TARGETS).contains(&targets.len()) {
        return Err(format!("must stand for 1 to {MOST_TARGETS} models"));
    }
    if let Some(target) = targets.iter().find(|target| !models.contains_key(&target.model)) {
        return Err(unknown("model", &target.model, models.keys()));
    }
    let prefer = match raw.prefer.as_deref() {
        None | Some("order") => Prefer::Order,
        Some("cheapest") => Prefer::Cheapest,
        Some(other) => return Err(format!("prefer {other:?} is neither order nor cheapest")),
    };
    if prefer == Prefer::Cheapest && targets.iter().any(|target| target.weight.is_some()) {
        return Err("prefers the cheapest, so weights mean nothing; leave them out".into());
    }
    let price = |kind, text: Option<&String>| text.map(|text| price_of(kind, text)).transpose();
    let (max_input, max_output) = (raw.max_input.as_ref(), raw.max_output.as_ref());
    let (max_input, max_output) = (price(UnitKind::INPUT, max_input)?, price(UnitKind::OUTPUT, max_output)?);
    Ok(Route { targets, prefer, max_input, max_output })
}

fn target(raw: RawTarget) -> Result<Target, String> {
    match raw {
        RawTarget::Name(model) => Ok(Target { model, weight: None }),
        RawTarget::Weighted { model, weight } if (1..=1_000_000).contains(&weight) => {
            Ok(Target { model, weight: Some(weight) })
        }
        RawTarget::Weighted { model, weight } => Err(format!("{model}: weight {weight} is not from 1 to 1000000")),
    }
}
