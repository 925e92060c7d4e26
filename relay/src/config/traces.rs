//! Where spans of requests go.

use super::check::{Keys, Wrong};
use super::raw::RawTraces;
use belay_traces::{Settings, TracesError};
use secrecy::SecretString;

pub(super) fn traces(raw: &RawTraces, keys: Keys) -> Result<Option<Settings>, Wrong> {
    let Some(endpoint) = raw.endpoint.clone() else {
        return match (&raw.headers_file, raw.ratio) {
            (None, None) => Ok(None),
            (Some(_), _) => Err(("traces.headers_file", "means nothing without traces.endpoint".into())),
            (None, Some(_)) => Err(("traces.ratio", "means nothing without traces.endpoint".into())),
        };
    };
    let headers = match &raw.headers_file {
        Some(path) if keys == Keys::Read => {
            let wrong = |why: String| ("traces.headers_file", format!("{}: {why}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
            headers(&text).map_err(wrong)?
        }
        _ => vec![],
    };
    let settings = Settings {
        endpoint,
        headers,
        service: "belayd",
        version: env!("CARGO_PKG_VERSION"),
        ratio: raw.ratio.unwrap_or(1.0),
        // Who asks does not decide what the operator may see.
        follows_callers: false,
    };
    settings.check().map_err(|error| {
        let key = match error {
            TracesError::Ratio(_) => "traces.ratio",
            TracesError::Header(_) => "traces.headers_file",
            _ => "traces.endpoint",
        };
        (key, error.to_string())
    })?;
    Ok(Some(settings))
}

/// A line each, `name: value`. Errors: which line is none; what stands in it is not said.
fn headers(text: &str) -> Result<Vec<(String, SecretString)>, String> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("line {number} is not \"name: value\""))?;
            Ok((name.trim().to_ascii_lowercase(), value.trim().into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn refused(text: &str) -> String {
        Config::parse(&format!("{text}\n[state]\ndir = \"x\"\n"), "x").expect_err(text).to_string()
    }

    #[test]
    fn what_makes_no_sense_is_named_and_keys_are_not_told() {
        let dir = tempfile::tempdir().expect("made");
        let file = dir.path().join("headers");
        let with = |content: &str| {
            std::fs::write(&file, content).expect("written");
            refused(&format!("[traces]\nendpoint = \"http://127.0.0.1:4318\"\nheaders_file = {file:?}"))
        };
        for (error, part) in [
            (refused("[traces]\nratio = 0.5"), "traces.ratio: means nothing without traces.endpoint"),
            (refused("[traces]\nheaders_file = \"h\""), "traces.headers_file: means nothing without"),
            (refused("[traces]\nendpoint = \"http://h\"\nratio = 2.0"), "traces.ratio: 2 is not a part from 0 to 1"),
            (refused("[traces]\nendpoint = \"http://u:SECRET@h\""), "traces.endpoint"),
            (with("# a comment\nSECRET"), "line 2 is not \"name: value\""),
            (with("a b: SECRET"), "\"a b\" is not the name of a header"),
            // Who asks what of whom is not for whoever listens, however the scheme is written.
            (
                refused("environment = \"production\"\n[traces]\nendpoint = \"HTTP://collector.example\""),
                "in the clear",
            ),
        ] {
            assert!(error.contains(part) && !error.contains("SECRET"), "{error}");
        }
    }
}
