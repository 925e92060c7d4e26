//! What a program did to the files below a directory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The calls that change files, or make sure that they are changed.
const TRACED: &str = "trace=openat,creat,write,pwrite64,pwritev,pwritev2,writev,lseek,fsync,fdatasync,ftruncate,truncate,\
     rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,fallocate,link,linkat,symlink,symlinkat,\
     copy_file_range,sync_file_range,msync,sendfile";

/// What makes sure is late: an answer that goes out before it is known long before it is done.
const LATE: &str = "inject=fsync,fdatasync:delay_enter=10000";

/// A call that changed something, or made sure of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A file that was not there before, or was there under another name.
    Create(PathBuf),
    /// Bytes at a place.
    Write(PathBuf, u64, Vec<u8>),
    /// As long as that, filled up with zeros.
    Resize(PathBuf, u64),
    /// All that was done to the content of a file before the call began, by its place among the steps.
    Sync(PathBuf, usize),
    /// All names in a directory, in the same way.
    SyncDir(PathBuf, usize),
    /// Takes the place of what was there.
    Rename(PathBuf, PathBuf),
    /// A name of a file is gone.
    Unlink(PathBuf),
    /// A directory.
    Mkdir(PathBuf),
    /// An empty directory is gone.
    Rmdir(PathBuf),
}

impl Op {
    /// What it was, without the bytes.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Write(path, at, bytes) => format!("write {} bytes at {at} of {}", bytes.len(), path.display()),
            other => format!("{other:?}"),
        }
    }
}

/// A call, and where the recording is when it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the recording up to the end of the call. A length of the file that was seen when something was known is a
    /// bound for what must have happened before.
    pub ends: u64,
    /// The call.
    pub op: Op,
}

/// Has a command recorded into a file. Errors: there is no `strace`.
pub fn recorded(command: &Command, log: &Path) -> Option<Command> {
    let there = Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success());
    let mut strace = Command::new("strace");
    // The program stays the child of whoever starts it: it is what is signalled and waited for.
    strace
        .args(["-D", "-f", "-y", "-xx", "-q", "-s", "67108864", "-e", "signal=none", "-e", TRACED, "-e", LATE, "-o"])
        .arg(log);
    strace.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        strace.current_dir(dir);
    }
    there.then_some(strace)
}

/// The steps of a recording below a directory. Panics at a call that it does not know: better than to model less than what
/// was done.
#[must_use]
pub fn steps(log: &[u8], below: &Path) -> Vec<Step> {
    let mut reader =
        Reader { below, steps: vec![], open: HashMap::new(), begun: HashMap::new(), known: HashMap::new() };
    let mut at = 0;
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        at += line.len() as u64;
        // The last line of one that was cut off has no end.
        if let Some(line) = line.strip_suffix(b"\n") {
            reader.line(std::str::from_utf8(line).expect("strace writes ASCII"), at);
        }
    }
    reader.steps
}

/// An open file, as its number has it.
#[derive(Debug, Clone)]
struct Open {
    at: u64,
    appends: bool,
}

struct Reader<'a> {
    below: &'a Path,
    steps: Vec<Step>,
    open: HashMap<i64, Open>,
    /// Calls that have begun and not ended, by thread: at which step, and their text.
    begun: HashMap<String, (usize, String)>,
    /// How long files are.
    known: HashMap<PathBuf, u64>,
}

impl Reader<'_> {
    fn line(&mut self, line: &str, ends: u64) {
        let (thread, rest) = line.split_once(' ').expect("a thread's number");
        let rest = rest.trim_start();
        if let Some(text) = rest.strip_suffix(" <unfinished ...>") {
            self.begun.insert(thread.to_owned(), (self.steps.len(), text.to_owned()));
            return;
        }
        let (began, text) = match rest.strip_prefix("<... ") {
            Some(resumed) => {
                let Some((began, first)) = self.begun.remove(thread) else { return };
                let (_, more) = resumed.split_once(" resumed>").expect("what is resumed");
                (began, first + more)
            }
            None => (self.steps.len(), rest.to_owned()),
        };
        // "exited with 0", and calls that never returned.
        let Some((call, result)) = text.rsplit_once(" = ") else { return };
        let Some((name, args)) = call.trim_end().strip_suffix(')').and_then(|call| call.split_once('(')) else {
            return;
        };
        let result = result.split(['<', ' ']).next().and_then(|number| number.parse::<i64>().ok()).unwrap_or(-1);
        if result >= 0 {
            self.call(name, &args.split(", ").map(Arg).collect::<Vec<_>>(), result, (began, ends));
        }
    }

    fn call(&mut self, name: &str, args: &[Arg<'_>], result: i64, (began, ends): (usize, u64)) {
        let ours = |path: Option<PathBuf>| path.filter(|path| path.starts_with(self.below));
        // Where it stands is not recorded.
        let named = matches!(name, "rename" | "unlink" | "mkdir" | "rmdir");
        assert!(!named || args[0].whole().is_some(), "{name} by a relative path is not modelled");
        let op = match name {
            "openat" => {
                let Some(path) = ours(args[1].text().map(|text| args[0].path().unwrap_or_default().join(text))) else {
                    self.open.remove(&result);
                    return;
                };
                let flags: Vec<&str> = args[2].0.split('|').collect();
                self.open.insert(result, Open { at: 0, appends: flags.contains(&"O_APPEND") });
                let is_new = flags.contains(&"O_CREAT") && !self.known.contains_key(&path);
                if is_new {
                    self.known.insert(path.clone(), 0);
                    Op::Create(path)
                } else if flags.contains(&"O_TRUNC") {
                    self.known.insert(path.clone(), 0);
                    Op::Resize(path, 0)
                } else {
                    return;
                }
            }
            "lseek" => {
                if let Some(open) = self.open.get_mut(&args[0].number()) {
                    open.at = result.unsigned_abs();
                }
                return;
            }
            "write" | "pwrite64" => {
                let Some(path) = ours(args[0].file()) else { return };
                let mut bytes = args[1].bytes().expect("bytes");
                bytes.truncate(usize::try_from(result).expect("small"));
                let len = self.known.entry(path.clone()).or_default();
                let at = if name == "pwrite64" {
                    args[3].number().unsigned_abs()
                } else {
                    let open = self.open.entry(args[0].number()).or_insert(Open { at: 0, appends: false });
                    let at = if open.appends { *len } else { open.at };
                    open.at = at + bytes.len() as u64;
                    at
                };
                *len = (*len).max(at + bytes.len() as u64);
                Op::Write(path, at, bytes)
            }
            "fsync" | "fdatasync" => {
                let Some(path) = ours(args[0].file()) else { return };
                if self.known.contains_key(&path) { Op::Sync(path, began) } else { Op::SyncDir(path, began) }
            }
            "ftruncate" => {
                let Some(path) = ours(args[0].file()) else { return };
                let len = args[1].number().unsigned_abs();
                self.known.insert(path.clone(), len);
                Op::Resize(path, len)
            }
            "fallocate" => {
                let Some(path) = ours(args[0].file()) else { return };
                assert_eq!(args[1].0, "0", "a way of fallocate that is not modelled");
                let (from, count) = (args[2].number().unsigned_abs(), args[3].number().unsigned_abs());
                let len = self.known.entry(path.clone()).or_default();
                *len = (*len).max(from + count);
                Op::Resize(path, *len)
            }
            "rename" => {
                let (from, to) = match (ours(args[0].whole()), ours(args[1].whole())) {
                    (Some(from), Some(to)) => (from, to),
                    (None, None) => return,
                    half => panic!("a rename out of what is recorded: {half:?}"),
                };
                let moved: Vec<PathBuf> = self.known.keys().filter(|path| path.starts_with(&from)).cloned().collect();
                for path in moved {
                    let len = self.known.remove(&path).expect("just found");
                    let under = path.strip_prefix(&from).expect("just filtered");
                    self.known.insert(if under == Path::new("") { to.clone() } else { to.join(under) }, len);
                }
                Op::Rename(from, to)
            }
            "unlink" => {
                let Some(path) = ours(args[0].whole()) else { return };
                self.known.remove(&path);
                Op::Unlink(path)
            }
            "unlinkat" => {
                let Some(path) = ours(args[1].text().map(|text| args[0].path().unwrap_or_default().join(text))) else {
                    return;
                };
                self.known.remove(&path);
                if args[2].0 == "0" { Op::Unlink(path) } else { Op::Rmdir(path) }
            }
            "mkdir" => match ours(args[0].whole()) {
                Some(path) => Op::Mkdir(path),
                None => return,
            },
            "rmdir" => match ours(args[0].whole()) {
                Some(path) => Op::Rmdir(path),
                None => return,
            },
            // To sockets, mostly.
            other => {
                let concerned = args.iter().any(|arg| ours(arg.file()).or_else(|| ours(arg.whole())).is_some());
                assert!(!concerned, "{other} is not modelled");
                return;
            }
        };
        self.steps.push(Step { ends, op });
    }
}

/// An argument of a call, as strace writes it.
struct Arg<'a>(&'a str);

impl Arg<'_> {
    fn number(&self) -> i64 {
        self.0.split('<').next().and_then(|number| number.parse().ok()).unwrap_or(-1)
    }

    /// What stands in quotes.
    fn bytes(&self) -> Option<Vec<u8>> {
        let quoted = self.0.strip_prefix('"')?;
        let (hex, rest) = quoted.rsplit_once('"').expect("quotes end");
        assert_eq!(rest, "", "a text that was cut");
        Some(unescaped(hex))
    }

    fn text(&self) -> Option<PathBuf> {
        self.bytes().map(|bytes| PathBuf::from(String::from_utf8(bytes).expect("a path is UTF-8 here")))
    }

    /// The same if it stands for itself.
    fn whole(&self) -> Option<PathBuf> {
        self.text().filter(|path| path.is_absolute())
    }

    /// What a number of an open file or directory stands for.
    fn path(&self) -> Option<PathBuf> {
        let (_, hex) = self.0.split_once('<')?;
        let (hex, _) = hex.split_once('>')?;
        hex.starts_with("\\x").then(|| PathBuf::from(String::from_utf8_lossy(&unescaped(hex)).into_owned()))
    }

    /// The same, while its name is there.
    fn file(&self) -> Option<PathBuf> {
        self.path().filter(|_| !self.0.ends_with("(deleted)"))
    }
}

/// Of `\x41\x42`.
fn unescaped(hex: &str) -> Vec<u8> {
    let digit = |byte: u8| u8::try_from((byte as char).to_digit(16).expect("a digit")).expect("below 16");
    hex.as_bytes().chunks_exact(4).map(|four| digit(four[2]) << 4 | digit(four[3])).collect()
}
