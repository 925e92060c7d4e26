//! A line with a queue, simulated, for the tests of the controller.

use super::State;
use crate::env::Random;
use crate::params::INITIAL_RTT;
use quinn::congestion::Controller;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub(super) const PACKET: u64 = 1400;

/// A line with a rate and a queue, and a sender that always has something to send, tick by tick.
pub(super) struct Line {
    start: Instant,
    us: u64,
    pub(super) rate_bps: u64,
    pub(super) delay_us: u64,
    buffer: u64,
    pub(super) loss_permille: u64,
    random: Random,
    pub(super) state: State,
    smoothed: Option<Duration>,
    /// When the line is free again.
    free_us: u64,
    /// Packets under way: number, sent, acknowledged (or seen to be lost) at, arrives.
    under_way: VecDeque<(u64, u64, u64, bool)>,
    pub(super) number: u64,
    /// Bytes that pacing lets out now.
    allowance: f64,
    pub(super) delivered: u64,
    waits_us: Vec<u64>,
}

impl Line {
    pub(super) fn new(rate_bps: u64, round_trip_ms: u64, buffer: u64) -> Self {
        let start = Instant::now();
        Self {
            start,
            us: 0,
            rate_bps,
            delay_us: round_trip_ms * 1000,
            buffer,
            loss_permille: 0,
            random: Random::from_seed(7),
            state: State::new(start, PACKET as u16),
            smoothed: None,
            free_us: 0,
            under_way: VecDeque::new(),
            number: 0,
            allowance: 0.0,
            delivered: 0,
            waits_us: vec![],
        }
    }

    pub(super) fn run(&mut self, seconds: u64) {
        self.delivered = 0;
        self.waits_us.clear();
        for _ in 0..seconds * 10_000 {
            self.us += 100;
            self.acknowledge();
            self.send();
        }
    }

    fn acknowledge(&mut self) {
        let now = self.start + Duration::from_micros(self.us);
        while self.under_way.front().is_some_and(|(_, _, at, _)| *at <= self.us) {
            let Some((number, sent, at, arrives)) = self.under_way.pop_front() else { return };
            if !arrives {
                self.state.on_congestion_event(now, now, false, PACKET);
                continue;
            }
            let trip = Duration::from_micros(at - sent);
            // As quinn does: told of before the average has it, which is another thing at first.
            let smoothed = self.smoothed.unwrap_or(INITIAL_RTT);
            self.state.acknowledged(now, smoothed, PACKET, false);
            self.state.acknowledgement_ends(now, Some(number));
            self.smoothed = Some(self.smoothed.map_or(trip, |smoothed| (smoothed * 7 + trip) / 8));
            self.delivered += PACKET;
        }
    }

    /// As quinn does: a window and a quarter per round trip, ten packets at once.
    fn send(&mut self) {
        let round_trip_us = self.smoothed.map_or(self.delay_us, |trip| trip.as_micros() as u64);
        let more = self.state.window as f64 * 1.25 * 100.0 / round_trip_us as f64;
        self.allowance = (self.allowance + more).min(10.0 * PACKET as f64);
        while self.under_way.len() as u64 * PACKET + PACKET <= self.state.window && self.allowance >= PACKET as f64 {
            self.allowance -= PACKET as f64;
            let wait_us = self.free_us.saturating_sub(self.us);
            let fits = wait_us * self.rate_bps / 8_000_000 + PACKET <= self.buffer;
            let arrives = fits && self.random.below(1000) >= self.loss_permille;
            if fits {
                self.waits_us.push(wait_us);
                self.free_us = self.us + wait_us + PACKET * 8_000_000 / self.rate_bps;
            }
            let back = if fits { self.free_us } else { self.us + wait_us } + self.delay_us;
            self.number += 1;
            self.state.on_sent(self.start, PACKET, self.number);
            self.under_way.push_back((self.number, self.us, back, arrives));
        }
    }

    /// How long 95 of 100 packets wait at the most.
    pub(super) fn queue_ms(&mut self) -> u64 {
        self.waits_us.sort_unstable();
        self.waits_us[self.waits_us.len() * 95 / 100] / 1000
    }

    pub(super) fn used(&self, seconds: u64) -> f64 {
        self.delivered as f64 * 8.0 / (self.rate_bps * seconds) as f64
    }
}
