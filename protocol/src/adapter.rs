//! What a LoRA adapter must look like before anybody keeps it: the header of its safetensors file and its
//! `adapter_config.json`.
//!
//! Both sides look: the client before it sends, the relay before it accepts. Only the header is read; weights are
//! numbers, and cannot do anything. Pickles can, and are refused.

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use thiserror::Error;

/// The most bytes of a header.
pub const MAX_HEADER: u64 = 1 << 20;
/// The first bytes of a file that hold its whole header, if that is not too long.
pub const HEADER_REGION: u64 = 8 + MAX_HEADER;
/// The most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;
const METADATA: &str = "__metadata__";

/// Why something is no adapter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AdapterError {
    /// The file of weights is a pickle, which runs code when it is loaded.
    #[error("the weights are a pickle, which can run code: save the adapter as safetensors")]
    Pickle,
    /// The file of weights is not usable.
    #[error("the weights are no usable safetensors file: {0}")]
    Weights(String),
    /// The configuration is not usable.
    #[error("adapter_config.json is not usable: {0}")]
    Config(String),
    /// The two do not belong together.
    #[error("weights and adapter_config.json do not fit: {0}")]
    Mismatch(String),
}

fn weights(why: impl Into<String>) -> AdapterError {
    AdapterError::Weights(why.into())
}

/// What an adapter's configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdapterConfig {
    /// The model that it belongs to.
    pub base_model: String,
    /// Ranks that its weights may have.
    pub ranks: BTreeSet<u64>,
}

#[derive(Deserialize)]
struct RawConfig {
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: Option<u64>,
    #[serde(default)]
    rank_pattern: Option<BTreeMap<String, u64>>,
}

impl AdapterConfig {
    /// Reads an `adapter_config.json`. Errors: `Config`.
    pub fn parse(text: &str) -> Result<Self, AdapterError> {
        let wrong = |why: &str| AdapterError::Config(why.to_owned());
        let raw: RawConfig = serde_json::from_str(text).map_err(|error| AdapterError::Config(error.to_string()))?;
        if !raw.peft_type.is_some_and(|kind| kind.eq_ignore_ascii_case("lora")) {
            return Err(wrong("peft_type is not LORA"));
        }
        let base_model = raw.base_model_name_or_path.unwrap_or_default().trim().to_owned();
        if base_model.is_empty() || base_model.len() > 512 || base_model.chars().any(char::is_control) {
            return Err(wrong("base_model_name_or_path names no model"));
        }
        let rank = raw.r.ok_or_else(|| wrong("r, the rank, is missing"))?;
        let ranks: BTreeSet<u64> = raw.rank_pattern.unwrap_or_default().into_values().chain([rank]).collect();
        if ranks.iter().any(|rank| !(1..=65_536).contains(rank)) {
            return Err(wrong("a rank is not from 1 to 65536"));
        }
        Ok(Self { base_model, ranks })
    }
}

/// A tensor as the header describes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Tensor {
    /// Bytes that its shape takes. `None`: more than can be counted, or a type that is not known.
    fn bytes(&self) -> Option<u64> {
        let bits: u64 = match self.dtype.as_str() {
            "F64" | "I64" | "U64" | "C64" => 64,
            "F32" | "I32" | "U32" => 32,
            "F16" | "BF16" | "I16" | "U16" => 16,
            "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "I8" | "U8" | "BOOL" => 8,
            "F4" => 4,
            _ => return None,
        };
        let count = self.shape.iter().try_fold(1_u64, |count, side| count.checked_mul(*side))?;
        let bits = count.checked_mul(bits)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// A header whose names are all different.
struct Header(BTreeMap<String, Tensor>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a tensor under each name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = BTreeMap::new();
                let mut described = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        if std::mem::replace(&mut described, true) {
                            return Err(A::Error::custom("__metadata__ is there twice"));
                        }
                        map.next_value::<BTreeMap<String, IgnoredAny>>()?;
                    } else {
                        let tensor = map.next_value()?;
                        if tensors.insert(name.clone(), tensor).is_some() {
                            return Err(A::Error::custom(format_args!("{name:.80} is there twice")));
                        }
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

/// Checks an adapter: `start` is the beginning of its weights, at least [`HEADER_REGION`] bytes or all of them,
/// `size` how many there are in all, `config` its configuration.
///
/// Errors: all of [`AdapterError`].
pub fn check(start: &[u8], size: u64, config: &str) -> Result<AdapterConfig, AdapterError> {
    if is_pickle(start) {
        return Err(AdapterError::Pickle);
    }
    let config = AdapterConfig::parse(config)?;
    let tensors = read_header(start, size)?;
    check_ranks(&tensors, &config)?;
    Ok(config)
}

/// A pickle's first opcode, where it is not the length of a header; a zip archive, in which PyTorch wraps one.
fn is_pickle(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, ..]) && start.get(3..8) != Some(&[0; 5]) || start.starts_with(b"PK\x03\x04")
}

fn read_header(start: &[u8], size: u64) -> Result<BTreeMap<String, Tensor>, AdapterError> {
    let Some((length, rest)) = start.split_first_chunk::<8>() else {
        return Err(weights(format!("it has {size} bytes, fewer than a header needs")));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(weights(format!("its header would have {length} bytes, at most {MAX_HEADER} are allowed")));
    }
    let Some(header) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
        return Err(weights(format!("its header has {length} bytes, the file {size}: it is cut short")));
    };
    if header.first() != Some(&b'{') {
        return Err(weights("its header is no JSON object"));
    }
    let Header(tensors) =
        serde_json::from_slice(header).map_err(|error| weights(format!("its header cannot be read: {error}")))?;
    // It may have become shorter since it was looked at.
    let data = size.checked_sub(8 + length).ok_or_else(|| weights("it is cut short"))?;
    check_places(&tensors, data)?;
    Ok(tensors)
}

/// Every byte of the data belongs to one tensor, and each has as many as its shape says.
fn check_places(tensors: &BTreeMap<String, Tensor>, data: u64) -> Result<(), AdapterError> {
    let mut places = vec![];
    for (name, tensor) in tensors {
        let name: String = name.chars().take(80).collect();
        let (begin, end) = tensor.data_offsets;
        if begin > end || end > data {
            return Err(weights(format!("{name} lies at {begin} to {end}, the data has {data} bytes")));
        }
        if tensor.shape.len() > MAX_DIMENSIONS {
            return Err(weights(format!("{name} has {} dimensions", tensor.shape.len())));
        }
        let wanted = tensor
            .bytes()
            .ok_or_else(|| weights(format!("{name} is of type {:.20}, or too large to count", tensor.dtype)))?;
        if wanted != end - begin {
            return Err(weights(format!("{name} has {} bytes, its shape asks for {wanted}", end - begin)));
        }
        places.push((begin, end, name));
    }
    places.sort();
    let mut covered = 0;
    for (begin, end, name) in places {
        if begin < covered {
            return Err(weights(format!("{name} begins at {begin}, within another tensor")));
        }
        if begin > covered {
            return Err(weights(format!("bytes {covered} to {begin} belong to no tensor")));
        }
        covered = end;
    }
    if covered != data {
        return Err(weights(format!("bytes {covered} to {data} belong to no tensor")));
    }
    Ok(())
}

/// The two halves of a LoRA weight, by what stands in their names: which of its dimensions is the rank.
const HALVES: [(&str, &str); 3] =
    [(".lora_A.", ".lora_B."), (".lora_down.", ".lora_up."), (".lora_embedding_A", ".lora_embedding_B")];

fn check_ranks(tensors: &BTreeMap<String, Tensor>, config: &AdapterConfig) -> Result<(), AdapterError> {
    let mut pairs = 0;
    for (name, tensor) in tensors {
        let short: String = name.chars().take(120).collect();
        if let Some((down, up)) = HALVES.iter().find(|(down, _)| name.contains(down)) {
            let other = name.replacen(down, up, 1);
            let Some(other) = tensors.get(&other) else {
                return Err(weights(format!("{short} has no other half")));
            };
            let (rank, same) = (tensor.shape.first().copied(), other.shape.get(1).copied());
            if tensor.shape.len() < 2 || rank != same {
                return Err(weights(format!("{short} and its other half are of different ranks")));
            }
            let rank = rank.unwrap_or_default();
            if !config.ranks.contains(&rank) {
                let says: Vec<_> = config.ranks.iter().map(u64::to_string).collect();
                return Err(AdapterError::Mismatch(format!(
                    "{short} is of rank {rank}, the configuration says {}",
                    says.join(", ")
                )));
            }
            pairs += 1;
        } else if let Some((down, up)) = HALVES.iter().find(|(_, up)| name.contains(up))
            && !tensors.contains_key(&name.replacen(up, down, 1))
        {
            return Err(weights(format!("{short} has no other half")));
        }
    }
    if pairs == 0 { Err(weights("there is no LoRA weight in it")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: &str = r#"{"peft_type":"LORA","base_model_name_or_path":"llama-3","r":4,"lora_alpha":8}"#;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    fn good() -> String {
        let a = r#""m.q.lora_A.weight":{"dtype":"F16","shape":[4,8],"data_offsets":[0,64]}"#;
        let b = r#""m.q.lora_B.weight":{"dtype":"F16","shape":[2,4],"data_offsets":[64,80]}"#;
        format!(r#"{{"__metadata__":{{"format":"pt"}},{a},{b}}}"#)
    }

    fn refused(bytes: &[u8], config: &str) -> String {
        check(bytes, bytes.len() as u64, config).expect_err("refused").to_string()
    }

    #[test]
    fn an_adapter_is_known_by_its_header_and_its_configuration() {
        let bytes = file(&good(), 80);
        let config = check(&bytes, bytes.len() as u64, CONFIG).expect("an adapter");
        assert_eq!((config.base_model.as_str(), config.ranks), ("llama-3", BTreeSet::from([4])));
        // The header is enough.
        assert!(check(&bytes[..bytes.len() - 80], bytes.len() as u64, CONFIG).is_ok());
        let pattern = CONFIG.replace("\"r\":4", "\"r\":16,\"rank_pattern\":{\"q\":4}");
        assert!(check(&bytes, bytes.len() as u64, &pattern).is_ok());
    }

    #[test]
    fn what_is_wrong_with_a_header_is_said() {
        let header = good();
        let changed = |from: &str, to: &str| file(&header.replace(from, to), 80);
        let cases = [
            (file(&header, 79), "the data has 79 bytes"),
            (file(&header, 81), "bytes 80 to 81 belong to no tensor"),
            (changed("[64,80]", "[63,79]"), "within another tensor"),
            (changed("[0,64]", "[64,0]"), "lies at 64 to 0"),
            (changed("\"shape\":[4,8]", "\"shape\":[4,9]"), "its shape asks for 72"),
            (changed("\"shape\":[4,8]", "\"shape\":[8,4]"), "different ranks"),
            (changed("[4,8]", "[4294967296,4294967296,4]"), "too large to count"),
            (changed("[4,8]", "[1,1,1,1,1,1,1,1,32]"), "9 dimensions"),
            (changed("F16\",\"shape\":[4", "Q3\",\"shape\":[4"), "is of type Q3"),
            (changed("lora_B", "lora_C"), "no other half"),
            (changed("lora_A", "lora_C"), "no other half"),
            (changed("m.q.lora_B", "m.q.lora_A"), "there twice"),
            (changed("{\"__meta", "[{\"__meta"), "no JSON object"),
            (file(r#"{"w":{"dtype":"F16","shape":[4,10],"data_offsets":[0,80]}}"#, 80), "no LoRA weight"),
            (file(&format!("{{\"a\":{}1", "[".repeat(100_000)), 0), "cannot be read"),
            (b"short".to_vec(), "fewer than a header"),
            ((MAX_HEADER + 1).to_le_bytes().to_vec(), "at most 1048576"),
            (u64::MAX.to_le_bytes().to_vec(), "at most 1048576"),
            (1000_u64.to_le_bytes().to_vec(), "cut short"),
            (b"\x80\x02}q\x00(X\x05\x00".to_vec(), "pickle"),
            (b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl".to_vec(), "pickle"),
        ];
        for (bytes, why) in cases {
            let error = refused(&bytes, CONFIG);
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_said() {
        let bytes = file(&good(), 80);
        let cases = [
            ("{", "EOF"),
            (r#"{"peft_type":"LORA","r":4}"#, "names no model"),
            (r#"{"peft_type":"IA3","base_model_name_or_path":"m","r":4}"#, "not LORA"),
            (r#"{"peft_type":"LORA","base_model_name_or_path":"m"}"#, "rank, is missing"),
            (r#"{"peft_type":"LORA","base_model_name_or_path":"m","r":0}"#, "not from 1"),
            (r#"{"peft_type":"LORA","base_model_name_or_path":"m","r":8}"#, "is of rank 4"),
        ];
        for (config, why) in cases {
            let error = refused(&bytes, config);
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in any::<u64>()) {
            let _ = check(&bytes, size.max(bytes.len() as u64), CONFIG);
            let _ = check(&file(&String::from_utf8_lossy(&bytes), 8), size.max(1000), CONFIG);
            let _ = AdapterConfig::parse(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_header_that_is_changed_is_refused_or_reads_the_same_data(at in 0_usize..300, to in any::<u8>()) {
            let mut bytes = file(&good(), 80);
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(tensors) = read_header(&bytes, bytes.len() as u64) {
                let total: u64 = tensors.values().map(|tensor| tensor.data_offsets.1 - tensor.data_offsets.0).sum();
                let length = u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes"));
                prop_assert_eq!(total, bytes.len() as u64 - 8 - length);
            }
        }
    }
}
