//! Which of an alias's models serves a request: those that fit it, the well ones first, in the order that
//! the operator wants. Pure but for the health, which it asks.

use super::health::Health;
use crate::config::{Model, Prefer, Route};
use belay_protocol::dialect::usage::BYTES_PER_ESTIMATED_TOKEN;
use belay_protocol::message::UnitKind;
use std::sync::Arc;

/// Output that is reckoned with where nobody says how much is wanted.
const USUAL_OUTPUT: u32 = 1024;

/// What a request needs of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// Of the body.
    pub(crate) bytes: u64,
    pub(crate) output: Option<u32>,
    pub(crate) images: bool,
    pub(crate) tools: bool,
}

/// What there is to decide by.
pub(crate) struct Chooser<'a> {
    pub(crate) health: &'a Health,
    /// For weights.
    pub(crate) random: &'a (dyn Fn() -> u64 + Sync),
    pub(crate) now_ms: u64,
}

/// The models in the order in which they are asked, and why the others are not.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) models: Vec<Arc<Model>>,
    pub(crate) unfit: Vec<String>,
}

/// Chooses among several.
pub(crate) fn choose(route: &Route, models: Vec<Arc<Model>>, needs: &Needs, chooser: &Chooser<'_>) -> Chosen {
    let mut unfit = vec![];
    let mut fit: Vec<(Arc<Model>, Option<u32>)> = vec![];
    for (model, target) in models.into_iter().zip(&route.targets) {
        match unfit_for(route, &model, needs, chooser.now_ms) {
            Some(why) => unfit.push(format!("{} {why}", target.model)),
            None => fit.push((model, target.weight)),
        }
    }
    let mut ordered = match route.prefer {
        Prefer::Cheapest => {
            let mut fit: Vec<_> = fit.into_iter().map(|(model, _)| model).collect();
            fit.sort_by_key(|model| cost(model, needs, chooser.now_ms));
            fit
        }
        Prefer::Order => drawn(fit, chooser.random),
    };
    // Those that are left alone come after the others; each group keeps its order. Only one may be tried, and leads then.
    let leads = ordered.iter().position(|model| chooser.health.may_lead(&model.provider, &model.name, chooser.now_ms));
    if let Some(place) = leads {
        let leader = ordered.remove(place);
        let (ill, well): (Vec<_>, Vec<_>) =
            ordered.into_iter().partition(|model| chooser.health.is_ill(&model.provider, &model.name, chooser.now_ms));
        ordered = std::iter::once(leader).chain(well).chain(ill).collect();
    }
    Chosen { models: ordered, unfit }
}

/// Why a model cannot serve a request.
fn unfit_for(route: &Route, model: &Model, needs: &Needs, now_ms: u64) -> Option<String> {
    // The bytes of an image say nothing of its tokens.
    let input = if needs.images { 0 } else { needs.bytes / BYTES_PER_ESTIMATED_TOKEN };
    let wanted = input + u64::from(needs.output.unwrap_or(0).min(model.max_output_tokens));
    if wanted > u64::from(model.context_tokens) {
        return Some(format!("takes {} tokens, and about {wanted} are needed", model.context_tokens));
    }
    if needs.images && !model.images {
        return Some("sees no images".into());
    }
    if needs.tools && !model.tools {
        return Some("calls no tools".into());
    }
    for (kind, most) in [(UnitKind::INPUT, route.max_input), (UnitKind::OUTPUT, route.max_output)] {
        if let (Some(most), Some(price)) = (most, price(model, kind, now_ms))
            && price > most.0
        {
            return Some(format!("costs more per {kind} than {most} a million"));
        }
    }
    None
}

fn price(model: &Model, kind: UnitKind, now_ms: u64) -> Option<i64> {
    model.prices.as_ref()?.at(now_ms)?.named(kind)
}

/// What a request will cost about, to compare by.
fn cost(model: &Model, needs: &Needs, now_ms: u64) -> i128 {
    let units = [
        (UnitKind::INPUT, needs.bytes / BYTES_PER_ESTIMATED_TOKEN),
        (UnitKind::OUTPUT, u64::from(needs.output.unwrap_or(USUAL_OUTPUT))),
    ];
    // One without a price is refused later on, and comes last here.
    let part =
        |(kind, units)| price(model, kind, now_ms).map_or(i128::MAX / 4, |price| i128::from(price) * i128::from(units));
    units.into_iter().map(part).sum()
}

/// Those with a weight in an order that is drawn, then the others as they stand.
fn drawn(fit: Vec<(Arc<Model>, Option<u32>)>, random: &dyn Fn() -> u64) -> Vec<Arc<Model>> {
    let (mut weighted, mut rest): (Vec<_>, Vec<_>) = fit.into_iter().partition(|(_, weight)| weight.is_some());
    let mut order = vec![];
    while !weighted.is_empty() {
        let weights = || weighted.iter().map(|(_, weight)| u64::from(weight.unwrap_or(0)));
        let mut at = random() % weights().sum::<u64>().max(1);
        let place = weights().position(|weight| {
            let here = at < weight;
            at = at.saturating_sub(weight);
            here
        });
        order.push(weighted.remove(place.unwrap_or(0)).0);
    }
    order.extend(rest.drain(..).map(|(model, _)| model));
    order
}
