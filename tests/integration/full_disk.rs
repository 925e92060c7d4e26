//! A relay whose disk is full: what runs is settled, nothing new begins, and it goes on once there is room.

use belay_tests::procs::{binary, run};
use belay_tests::python::require_all;
use std::process::Command;

/// In a memory file system of 160 MiB, in a namespace of its own. `$1` is the directory, `$2` belayd, `$3` belay.
const SCRIPT: &str = r#"
set -e
mount -t tmpfs -o size=160m tmpfs "$1"; cd "$1"
export BELAY_HOME="$1/home"
cat > belayd.toml <<'END'
[listen]
quic = "127.0.0.1:0"
[state]
dir = "state"
[providers.demo]
kind = "demo"
pace_ms = 100
[models.demo]
provider = "demo"
name = "demo-1"
context_tokens = 32000
max_output_tokens = 4096
price = { input = "3", output = "15" }
[aliases]
auto = "demo"
END
"$2" serve > serve.out 2> serve.err &
relay=$!
trap 'kill $relay 2>/dev/null || true' EXIT
wait_for() { # what command...
    what=$1; shift
    for _ in $(seq 300); do if "$@" > /dev/null 2>&1; then return 0; fi; sleep 0.1; done
    echo "never: $what"; cat serve.err; exit 9
}
wait_for "it runs" "$2" status
wait_for "the reserve is there" test -s state/reserve
"$2" tenant create acme --credit 5 > /dev/null
"$3" join "$("$2" invite acme 2>/dev/null)" > /dev/null
"$3" ask "Why is the sky blue?" > running.out 2> running.err &
asking=$!
wait_for "it answers" test -s running.out
# All but a little of what there is.
dd if=/dev/zero of=filler bs=1M 2>/dev/null || true
wait_for "the reserve is given" sh -c '! test -s state/reserve'
echo "refused: $("$3" ask --wait 2 hello 2>&1 || true)"
echo "status: $("$2" status)"
wait $asking && echo "what ran has ended"
tail -c 200 running.out; cat running.err
rm filler
wait_for "it goes on" "$3" ask hello
wait_for "the reserve is back" test -s state/reserve
"$2" ledger verify > /dev/null && echo "verified"
kill $relay; wait $relay || true
"#;

#[test]
fn what_runs_is_settled_in_the_reserve_and_nothing_new_begins() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh"]);
    command.arg(dir.path()).arg(binary("belayd")).arg(binary("belay"));
    let ran = run(&mut command).unwrap();
    if ran.code == Some(1) && ran.stderr.contains("unshare") {
        assert!(!require_all(), "no namespaces: {}", ran.stderr);
        eprintln!("SKIPPED: no namespaces here: {}", ran.stderr);
        return;
    }
    assert_eq!(ran.code, Some(0), "{} {}", ran.stdout, ran.stderr);
    for words in ["refused: ", "disk is nearly full", "make room", "what ran has ended", "verified"] {
        assert!(ran.stdout.contains(words), "{words}: {} {}", ran.stdout, ran.stderr);
    }
}
