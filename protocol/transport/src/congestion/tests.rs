//! The controller on simulated lines.

use super::line::{Line, PACKET};
use super::{Controller, FLOOR, Instant};

#[test]
fn a_line_is_filled_and_its_queue_is_not() {
    for (rate_bps, round_trip_ms, most_ms) in
        [(20_000_000, 40, 6), (100_000_000, 10, 6), (100_000_000, 100, 6), (2_000_000, 40, 60), (5_000_000, 200, 15)]
    {
        let mut line = Line::new(rate_bps, round_trip_ms, 1 << 20);
        line.run(5);
        line.run(30);
        let (used, queue_ms) = (line.used(30), line.queue_ms());
        assert!(used > 0.85, "{rate_bps} bit/s, {round_trip_ms} ms: only {used:.2} of the line");
        assert!(queue_ms <= most_ms, "{rate_bps} bit/s, {round_trip_ms} ms: a queue of {queue_ms} ms");
    }
}

#[test]
fn a_long_way_is_not_taken_for_a_queue_at_first() {
    for round_trip_ms in [150, 250, 400] {
        let mut line = Line::new(100_000_000, round_trip_ms, 1 << 22);
        line.run(5);
        let used = line.used(5);
        assert!(used > 0.4, "{round_trip_ms} ms: only {used:.2} of the line in the first five seconds");
    }
}

#[test]
fn loss_by_chance_costs_no_more_than_it_takes() {
    let mut line = Line::new(20_000_000, 100, 1 << 20);
    line.loss_permille = 50;
    line.run(5);
    line.run(30);
    let used = line.used(30);
    assert!(used > 0.8, "only {used:.2} of the line");
}

#[test]
fn a_short_buffer_is_not_drowned() {
    let mut line = Line::new(20_000_000, 40, 3 * PACKET);
    line.run(5);
    let sent = line.number;
    line.run(30);
    let (used, sent) = (line.used(30), (line.number - sent) * PACKET);
    let lost = 1.0 - line.delivered as f64 / sent as f64;
    assert!(used > 0.6 && lost < 0.2, "{used:.2} of the line, {lost:.2} of the packets lost");
}

#[test]
fn marks_and_a_long_silence_make_the_window_smaller() {
    let mut line = Line::new(20_000_000, 40, 1 << 20);
    line.run(10);
    let (before, now) = (line.state.window(), Instant::now());
    line.state.on_congestion_event(now, now, false, 0);
    let after = line.state.window();
    assert!(after < before, "a packet was marked");
    line.state.on_congestion_event(now, now, false, 0);
    assert_eq!(line.state.window(), after, "what was sent before the answer says nothing new");
    line.state.on_congestion_event(now, now, true, PACKET);
    assert_eq!(line.state.window(), FLOOR * PACKET);
    line.run(5);
    line.run(10);
    assert!(line.used(10) > 0.85, "only {:.2} of the line afterwards", line.used(10));
}

#[test]
fn a_longer_way_and_a_faster_line_are_found_out() {
    let mut line = Line::new(20_000_000, 40, 1 << 20);
    line.run(20);
    line.delay_us = 120_000;
    line.run(20);
    line.run(20);
    let used = line.used(20);
    assert!(used > 0.8, "only {used:.2} after the way became longer");
    line.rate_bps = 80_000_000;
    line.run(20);
    line.run(20);
    let used = line.used(20);
    assert!(used > 0.8, "only {used:.2} after the line became faster");
    assert!(line.queue_ms() < 8);
}
