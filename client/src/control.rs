//! The control stream of a tunnel that is up: heartbeats, and whether the path still carries
//! anything.
//!
//! A heartbeat leaves at once and then every interval, whatever else is sent. While requests wait
//! for their answers, a path on which nothing arrives is probed at once, and suspected when the
//! probe stays without an answer: the keeper then dials a second tunnel beside this one.

use crate::tunnel::Tunnel;
use crate::tunnels::Tunnels;
use belay_protocol::codec::Message;
use belay_protocol::frame::{Frame, FrameType};
use belay_protocol::message::{Extension, GoAway, Heartbeat, HeartbeatAck};
use belay_protocol::stream::{FrameReader, FrameWriter};
use belay_protocol::vitals::{self, RelayState, Vitals};
use belay_transport::connection::{Connection, Path};
use belay_transport::env::Clock;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// While requests wait, the path is looked at so often.
const LOOK: Duration = Duration::from_millis(100);
/// A path on which nothing has arrived for so long is probed, while requests wait.
const QUIET: Duration = Duration::from_millis(300);
/// A probe without an answer is suspicious after this, or three of the transport's own timeouts.
const SUSPICIOUS: Duration = Duration::from_secs(1);
/// Over TCP a heartbeat waits in line behind what requests send; a line is taken to carry at least so
/// many bytes per second, for so long at the most.
const SLOW_LINE: u64 = 16 << 10;
const LONGEST_UPLOAD: Duration = Duration::from_secs(60);
/// A clock that jumps further than this means that the machine slept, or the process stood still.
const JUMP: Duration = Duration::from_secs(2);
/// How often the way to the relay is looked up, to learn of another network.
const LOOK_AT_NETWORK: Duration = Duration::from_secs(2);
/// A computer that stays hot asks again for what it will need.
const STILL_HOT: Duration = Duration::from_secs(60);
/// So many heartbeats without an answer end the tunnel.
const MISSED: u64 = 3;

/// What happens on a control stream.
#[derive(Debug)]
pub(crate) enum Event {
    /// A heartbeat was answered.
    Answered {
        /// From sending to the answer, less the time that the relay held it.
        round_trip: Duration,
        /// As the relay's transport measures it.
        relay_round_trip: Duration,
        /// How the relay is, if it tells.
        state: Option<RelayState>,
        /// Certificates that were made then or before are to be renewed soon, milliseconds since 1970.
        renew_since_ms: Option<u64>,
    },
    /// The path may be dead.
    Suspect(&'static str),
    /// Something has arrived after all.
    Alive,
    /// It is time to look whether the machine is on another network.
    LookAtNetwork,
    /// The relay takes no new streams.
    GoingAway(GoAway),
    /// It is over.
    Ended(String),
}

/// The control stream, and what is known of the path.
#[derive(Debug)]
pub(crate) struct Control {
    writer: FrameWriter,
    reader: FrameReader,
    connection: Connection,
    tunnels: Arc<Tunnels>,
    outstanding: watch::Receiver<usize>,
    /// When the computer was last found to be hot.
    hot: Option<Instant>,
    clock: Arc<dyn Clock>,
    interval: Duration,
    start: Instant,
    next_beat: Instant,
    next_look_at_network: Instant,
    sequence: u64,
    answered: u64,
    round_trip_us: Option<u32>,
    /// When the oldest heartbeat without an answer left.
    probed: Option<Instant>,
    /// Bytes that had been sent when the newest heartbeat was queued, and when the newest that was
    /// answered was: so many have arrived.
    sent_at_beat: u64,
    delivered: u64,
    /// How much had arrived, and when that was seen.
    arrived: (u64, Instant),
    suspected: bool,
    /// By how much the looks since the last arrival came too late.
    starved: Duration,
    /// The two clocks at the last look.
    looked: (Instant, u64),
    /// When the last wait should have ended.
    due: Instant,
}

impl Control {
    pub(crate) fn new(
        (writer, reader): (FrameWriter, FrameReader),
        tunnel: &Tunnel,
        tunnels: Arc<Tunnels>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let now = Instant::now();
        let interval = tunnel.hello().heartbeat_interval_ms.clamp(10, 3_600_000);
        Self {
            writer,
            reader,
            connection: tunnel.connection().clone(),
            outstanding: tunnels.outstanding(),
            tunnels,
            hot: None,
            looked: (now, clock.now_ms()),
            clock,
            interval: Duration::from_millis(interval.into()),
            start: now,
            next_beat: now,
            next_look_at_network: now,
            sequence: 0,
            answered: 0,
            round_trip_us: None,
            probed: None,
            sent_at_beat: 0,
            delivered: 0,
            arrived: (0, now),
            suspected: false,
            starved: Duration::ZERO,
            due: now,
        }
    }

    /// The next thing that happens. Dropping the future loses nothing.
    pub(crate) async fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.look() {
                return event;
            }
            let busy = *self.outstanding.borrow_and_update() > 0;
            let mut wake = self.next_beat.min(self.next_look_at_network);
            if busy {
                wake = wake.min(Instant::now() + LOOK);
            }
            self.due = wake;
            let tunnels = Arc::clone(&self.tunnels);
            tokio::select! {
                // What the relay says first: an answer that is here counts before a beat that is due.
                biased;
                frame = self.reader.frame() => match frame {
                    // The acknowledgement of the packet is the answer.
                    Ok(Some(frame)) if frame.kind == FrameType::Probe => {}
                    Ok(Some(frame)) => match self.heard(&frame) {
                        Ok(event) => return event,
                        Err(error) => return Event::Ended(error.to_string()),
                    },
                    Ok(None) => return Event::Ended("the relay ended the control stream".into()),
                    Err(error) => return Event::Ended(error.to_string()),
                },
                flushed = self.writer.flush(), if !self.writer.is_flushed() => {
                    if let Err(error) = flushed {
                        return Event::Ended(error.to_string());
                    }
                }
                // A first request: the path must be looked at from now on. It ends with the client.
                _ = self.outstanding.changed(), if !busy => {}
                () = tunnels.signs.prewarm.notified() => {
                    if let Err(why) = self.beat(Instant::now(), true) {
                        return Event::Ended(why);
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// What is due now.
    fn look(&mut self) -> Option<Event> {
        let now = Instant::now();
        let late = now.saturating_duration_since(self.due);
        if late > LOOK {
            // Whoever looks late reads late: what has come meanwhile may lie there unread.
            self.starved += late;
        }
        if now >= self.next_beat {
            if self.sequence - self.answered >= MISSED && now.duration_since(self.arrived.1) >= self.upload() {
                return Some(Event::Ended("three heartbeats were not answered".into()));
            }
            if let Err(why) = self.beat(now, false) {
                return Some(Event::Ended(why));
            }
        }
        if self.has_jumped(now) {
            // What was true before the jump says nothing of now.
            self.suspected = true;
            self.arrived = (self.arrivals(), now);
            if self.probed.is_none_or(|at| at < now)
                && let Err(why) = self.beat(now, false)
            {
                return Some(Event::Ended(why));
            }
            return Some(Event::Suspect("the machine has slept"));
        }
        if let Some(event) = self.look_at_path(now) {
            return Some(event);
        }
        if now >= self.next_look_at_network {
            self.next_look_at_network = now + LOOK_AT_NETWORK;
            if self.turns_hot(now)
                && let Err(why) = self.beat(now, true)
            {
                return Some(Event::Ended(why));
            }
            return Some(Event::LookAtNetwork);
        }
        None
    }

    fn look_at_path(&mut self, now: Instant) -> Option<Event> {
        let arrivals = self.arrivals();
        if arrivals != self.arrived.0 {
            self.arrived = (arrivals, now);
            self.starved = Duration::ZERO;
            return std::mem::take(&mut self.suspected).then_some(Event::Alive);
        }
        if self.suspected || *self.outstanding.borrow() == 0 {
            return None;
        }
        let Some(probed) = self.probed else {
            if now.duration_since(self.arrived.1) >= QUIET
                && let Err(why) = self.beat(now, false)
            {
                return Some(Event::Ended(why));
            }
            return None;
        };
        // quinn tells the smoothed round trip and not its variance: in a new connection the variance
        // is half of it, and the transport's timeout two of it and the longest acknowledgement delay.
        let timeout = self.connection.rtt() * 2 + Duration::from_millis(25);
        let patience = SUSPICIOUS.max(timeout * 3) + self.upload() + self.starved;
        if now.duration_since(probed.max(self.arrived.1)) < patience {
            return None;
        }
        self.suspected = true;
        Some(Event::Suspect("a heartbeat is not answered"))
    }

    /// How long what was sent since the last heartbeat that arrived may be on its way, over TCP.
    fn upload(&self) -> Duration {
        if self.connection.path() != Path::Tcp {
            return Duration::ZERO;
        }
        let ahead = self.connection.traffic().bytes_sent.saturating_sub(self.delivered);
        Duration::from_secs(ahead / SLOW_LINE).min(LONGEST_UPLOAD)
    }

    /// Not answered so far: the keeper may try once more.
    pub(crate) fn is_suspected(&self) -> bool {
        self.suspected
    }

    fn has_jumped(&mut self, now: Instant) -> bool {
        let wall_ms = self.clock.now_ms();
        let (last, last_ms) = std::mem::replace(&mut self.looked, (now, wall_ms));
        let wall = Duration::from_millis(wall_ms.saturating_sub(last_ms));
        let late = now > self.due + JUMP;
        // Once is enough: what was due is looked at now.
        self.due = self.due.max(now);
        wall > now.duration_since(last) + JUMP || late
    }

    fn arrivals(&self) -> u64 {
        self.connection.traffic().arrivals
    }

    fn beat(&mut self, now: Instant, prewarm: bool) -> Result<(), String> {
        self.sequence += 1;
        self.next_beat = now + self.interval;
        self.probed.get_or_insert(now);
        self.sent_at_beat = self.connection.traffic().bytes_sent;
        let heartbeat = Heartbeat {
            sequence: self.sequence,
            sent_at_us: self.since_start(),
            round_trip_us: self.round_trip_us,
            extensions: self.extensions(prewarm),
        };
        // It leaves with the next flush; the queue is bounded by the heartbeats that may be missed.
        self.writer.queue(&heartbeat).map_err(|error| error.to_string())
    }

    /// The computer's own GPU has come near its limit: once, until it has cooled down or is hot for long.
    fn turns_hot(&mut self, now: Instant) -> bool {
        if !self.tunnels.signs.sensors.as_ref().is_some_and(|sensors| sensors.vitals().is_hot()) {
            self.hot = None;
            return false;
        }
        let again = self.hot.is_none_or(|since| now.duration_since(since) >= STILL_HOT);
        if again {
            self.hot = Some(now);
        }
        again
    }

    fn extensions(&self, prewarm: bool) -> Vec<Extension> {
        let signs = &self.tunnels.signs;
        let mut extensions = vec![];
        if let Some(sensors) = &signs.sensors {
            let count = |count: usize| Some(u32::try_from(count).unwrap_or(u32::MAX));
            let active_requests = count(*self.outstanding.borrow());
            let queued_requests = count(self.tunnels.queued());
            extensions.push(Vitals { active_requests, queued_requests, ..sensors.vitals() }.to_extension());
        }
        if let Some(model) = &signs.loaded_model {
            extensions.push(vitals::text(vitals::heartbeat::LOADED_MODEL, model));
        }
        if prewarm {
            extensions.push(vitals::text(vitals::heartbeat::PREWARM, &signs.prewarm_model));
        }
        extensions
    }

    fn heard(&mut self, frame: &Frame) -> Result<Event, belay_protocol::error::ProtocolError> {
        if frame.kind == FrameType::GoAway {
            return Ok(Event::GoingAway(GoAway::from_frame(frame)?));
        }
        let ack = HeartbeatAck::from_frame(frame)?;
        self.answered = self.answered.max(ack.sequence.min(self.sequence));
        if self.answered == self.sequence {
            self.probed = None;
            self.delivered = self.sent_at_beat;
        }
        let round_trip = self.since_start().saturating_sub(ack.echo_us).saturating_sub(ack.held_us.into());
        self.round_trip_us = Some(u32::try_from(round_trip).unwrap_or(u32::MAX));
        Ok(Event::Answered {
            round_trip: Duration::from_micros(round_trip),
            relay_round_trip: Duration::from_micros(ack.relay_round_trip_us.into()),
            state: RelayState::among(&ack.extensions),
            renew_since_ms: vitals::renew_among(&ack.extensions),
        })
    }

    fn since_start(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
