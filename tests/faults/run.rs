//! Running one fault's test, and remembering what came of it.

use crate::fuzz;
use anyhow::{Context, ensure};
use belay_tests::fault::{Fault, MARK};
use belay_tests::python::target_dir;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The faults, and the tests that try them.
pub(crate) const FAULTS: [(&str, &str); 17] = [
    ("relay-killed-in-requests", "crash::kill_9_in_the_middle_of_fifty_requests_five_times"),
    ("relay-killed-and-found", "faults::a_killed_relay_is_noticed_and_found_again_fifty_times"),
    ("power-cut", "power::a_relay_that_loses_power_keeps_what_it_has_acknowledged"),
    ("relay-drained", "faults::a_relay_is_drained_under_running_streams_twenty_times"),
    ("client-killed", "faults::a_client_is_killed_and_started_again_a_hundred_times"),
    ("address-changed", "faults::a_hundred_address_changes_cost_no_reconnect"),
    ("path-gone", "faults::paths_that_are_gone_for_up_to_a_minute_cost_no_event_and_no_cent"),
    ("bad-line", "faults::twenty_thousand_tokens_cross_a_bad_line"),
    ("hours-simulated", "simulation::a_hundred_hours_of_twenty_devices_leave_the_books_clean"),
    ("paths-lost-simulated", "simulation::paths_that_are_lost_a_thousand_times_cost_no_event_and_no_cent"),
    ("bad-line-simulated", "simulation::a_million_tokens_over_a_bad_line_arrive_once_and_in_order"),
    ("certificates-ended", "renewal::a_hundred_certificates_that_end_in_the_middle_of_streams_cut_none"),
    ("sync-histories", "sync_model::devices_converge_and_nothing_is_lost_whatever_happens"),
    ("sync-line-cut", "sync_faults::an_adapter_crosses_a_lossy_line_that_is_cut_and_little_is_sent_twice"),
    ("sync-killed", "sync_cli::what_was_acknowledged_survives_kills_of_either_side"),
    ("hostile-streams", "hostile::ten_thousand_hostile_streams_cost_nobody_but_themselves"),
    ("herd", "herd::two_thousand_clients_that_lose_their_relay_are_back_within_thirty_seconds"),
];

/// Runs tests, and knows what is finished.
pub(crate) struct Runner {
    scale: &'static str,
    seed: Option<u64>,
    /// A line for each fault that is finished.
    known: PathBuf,
    done: Vec<Fault>,
    /// The integration tests, once they are built.
    tests: Option<PathBuf>,
}

impl Runner {
    pub(crate) fn open(scale: &'static str, seed: Option<u64>, fresh: bool) -> anyhow::Result<Self> {
        let dir = target_dir().join("faults");
        fs::create_dir_all(&dir)?;
        let of_seed = seed.map(|seed| format!("-{seed}")).unwrap_or_default();
        let known = dir.join(format!("{scale}{of_seed}.jsonl"));
        if fresh && known.exists() {
            fs::remove_file(&known)?;
        }
        let text = fs::read_to_string(&known).unwrap_or_default();
        // A line that was being written when the run was stopped is none.
        let done = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Self { scale, seed, known, done, tests: None })
    }

    /// What came of a fault, now or in the run that was stopped. One that failed is tried again.
    pub(crate) fn run(&mut self, name: &str) -> anyhow::Result<Vec<Fault>> {
        let finished: Vec<Fault> = self.done.iter().filter(|fault| fault.fault == name).cloned().collect();
        if !finished.is_empty() {
            return Ok(finished);
        }
        let told = match FAULTS.iter().find(|(known, _)| *known == name) {
            Some((_, test)) => self.test(name, test)?,
            None => {
                let seconds = if self.scale == "release" { 1200 } else { 20 };
                vec![fuzz::run(name.trim_start_matches("fuzz-"), seconds)?]
            }
        };
        if told.iter().all(|fault| fault.holds) {
            let mut file = File::options().create(true).append(true).open(&self.known)?;
            for fault in &told {
                writeln!(file, "{}", serde_json::to_string(fault)?)?;
            }
        }
        Ok(told)
    }

    /// Runs a fault's test.
    fn test(&mut self, name: &str, test: &str) -> anyhow::Result<Vec<Fault>> {
        let tests = match &self.tests {
            Some(tests) => tests.clone(),
            None => self.tests.insert(build()?).clone(),
        };
        let mut command = Command::new(tests);
        command.args(["--exact", test, "--nocapture", "--test-threads", "1"]).stdin(Stdio::null());
        command.env("BELAY_SCALE", self.scale).current_dir(env!("CARGO_MANIFEST_DIR"));
        if let Some(seed) = self.seed {
            command.env("BELAY_SEED", seed.to_string());
        }
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let log = self.known.with_file_name(format!("{name}.log"));
        fs::write(&log, [&output.stdout[..], &output.stderr].concat())?;
        ensure!(!String::from_utf8_lossy(&output.stdout).contains("running 0 tests"), "there is no test {test}");
        let told: Vec<Fault> =
            said.lines().filter_map(|line| serde_json::from_str(line.split_once(MARK)?.1).ok()).collect();
        if !output.status.success() || told.is_empty() {
            let seed = self.seed.map(|seed| format!(" --seed {seed}")).unwrap_or_default();
            eprintln!("{name} failed; its output: {}", log.display());
            eprintln!(
                "  again: cargo run --release -p belay-tests --bin faults -- --scale {}{seed} --only {name}",
                self.scale
            );
            let mut failed = Fault::kept(name, 0, "see its output");
            failed.holds = false;
            return Ok(vec![failed]);
        }
        Ok(told)
    }
}

/// Builds the integration tests in the profile of this program.
fn build() -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "-p", "belay-tests", "--test", "integration", "--no-run", "--message-format=json"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the integration tests cannot be built");
    let messages =
        output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let mut found = messages.filter_map(|message| {
        let is_it = message["target"]["name"] == "integration";
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    });
    found.next().context("cargo has built no integration tests")
}
