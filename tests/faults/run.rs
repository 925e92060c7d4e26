//! Running one fault's test, and remembering what came of it.

use crate::fuzz;
use anyhow::{Context, ensure};
use belay_tests::fault::{Fault, MARK};
use belay_tests::python::target_dir;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

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

/// How long a fault may take, every day and before a release.
const PATIENCE: [Duration; 2] = [Duration::from_secs(1800), Duration::from_secs(6 * 3600)];

/// Runs tests, and knows what is finished.
pub(crate) struct Runner {
    scale: &'static str,
    seed: Option<u64>,
    /// A line for each fault that is finished.
    known: PathBuf,
    done: Vec<Done>,
    /// The integration tests, once they are built, and what tells them from others.
    tests: Option<(PathBuf, String)>,
}

/// A fault that is finished, and with which program it was tried: another one's results say nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Done {
    program: String,
    #[serde(flatten)]
    fault: Fault,
}

impl Runner {
    /// `fresh`: what an earlier run has finished of those that are `wanted` is forgotten.
    pub(crate) fn open(
        scale: &'static str,
        seed: Option<u64>,
        fresh: bool,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Self> {
        let dir = target_dir().join("faults");
        fs::create_dir_all(&dir)?;
        let of_seed = seed.map(|seed| format!("-{seed}")).unwrap_or_default();
        let known = dir.join(format!("{scale}{of_seed}.jsonl"));
        let text = fs::read_to_string(&known).unwrap_or_default();
        // A line that was being written when the run was stopped is none.
        let done: Vec<Done> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let done: Vec<Done> = done.into_iter().filter(|done| !fresh || !wanted(&done.fault.fault)).collect();
        let runner = Self { scale, seed, known, done, tests: None };
        runner.remember()?;
        Ok(runner)
    }

    /// A whole run is over: the next one begins anew.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.done.clear();
        self.remember()
    }

    fn remember(&self) -> anyhow::Result<()> {
        let lines: Result<Vec<String>, _> = self.done.iter().map(serde_json::to_string).collect();
        let text: String = lines?.into_iter().map(|line| line + "\n").collect();
        let next = self.known.with_extension("next");
        fs::write(&next, text)?;
        Ok(fs::rename(next, &self.known)?)
    }

    /// What came of a fault, now or, with the same program, in the run that was stopped. One that failed is tried again.
    pub(crate) fn run(&mut self, name: &str) -> anyhow::Result<Vec<Fault>> {
        let test = FAULTS.iter().find(|(known, _)| *known == name).map(|(_, test)| *test);
        let (program, id) = match (test, &self.tests) {
            (None, _) => fuzz::program()?,
            (Some(_), Some(built)) => built.clone(),
            (Some(_), None) => self.tests.insert(build()?).clone(),
        };
        let finished = self.done.iter().filter(|done| done.fault.fault == name && done.program == id);
        let finished: Vec<Fault> = finished.map(|done| done.fault.clone()).collect();
        if !finished.is_empty() {
            eprintln!("{name}: finished before, by this very program");
            return Ok(finished);
        }
        let told = match test {
            Some(test) => self.test(&program, name, test)?,
            None => {
                let seconds = if self.scale == "release" { 1200 } else { 20 };
                vec![fuzz::run(&program, name.trim_start_matches("fuzz-"), seconds, self.seed)?]
            }
        };
        if told.iter().all(|fault| fault.holds) {
            self.done.retain(|done| done.fault.fault != name);
            self.done.extend(told.iter().map(|fault| Done { program: id.clone(), fault: fault.clone() }));
            self.remember()?;
        }
        Ok(told)
    }

    /// Runs a fault's test.
    fn test(&self, tests: &Path, name: &str, test: &str) -> anyhow::Result<Vec<Fault>> {
        let log = self.known.with_file_name(format!("{name}.log"));
        let output = File::create(&log)?;
        let mut command = Command::new(tests);
        command.args(["--exact", test, "--nocapture", "--test-threads", "1"]).stdin(Stdio::null());
        command.env("BELAY_SCALE", self.scale).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.stdout(output.try_clone()?).stderr(output);
        if let Some(seed) = self.seed {
            command.env("BELAY_SEED", seed.to_string());
        }
        let patience = PATIENCE[usize::from(self.scale == "release")];
        let succeeded = ends(&mut command, patience)?;
        let said = fs::read_to_string(&log)?;
        ensure!(!said.contains("running 0 tests"), "there is no test {test}");
        let told: Vec<Fault> =
            said.lines().filter_map(|line| serde_json::from_str(line.split_once(MARK)?.1).ok()).collect();
        if succeeded != Some(true) || told.is_empty() {
            let seed = self.seed.map(|seed| format!(" --seed {seed}")).unwrap_or_default();
            let how = if succeeded.is_none() { "did not end in time" } else { "failed" };
            eprintln!("{name} {how}; its output: {}", log.display());
            eprintln!(
                "  again: cargo run --release -p belay-tests --bin faults -- --scale {}{seed} --only {name}",
                self.scale
            );
            let words = said.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
            let words: String = words.unwrap_or(how).chars().take(120).collect();
            return Ok(vec![Fault::failed(name, words)]);
        }
        Ok(told)
    }
}

/// Whether a command succeeds. `None`: it takes too long, and was ended.
pub(crate) fn ends(command: &mut Command, patience: Duration) -> anyhow::Result<Option<bool>> {
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let until = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        sleep(Duration::from_millis(100));
    }
}

/// What tells a program from others: a digest of it.
pub(crate) fn id_of(program: &Path) -> anyhow::Result<String> {
    let digest = belay_certs::sha256(&fs::read(program)?);
    Ok(digest[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Builds the integration tests in the profile of this program.
fn build() -> anyhow::Result<(PathBuf, String)> {
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
    let tests = found.next().context("cargo has built no integration tests")?;
    let id = id_of(&tests)?;
    Ok((tests, id))
}
