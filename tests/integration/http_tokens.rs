//! Tokens and keys over HTTP: what is taken, and that nothing else is.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use belay_relay::api_keys::{ApiKeys, KeyRefusal};
use belay_relay::store::central::keys::KeyScope;
use belay_tests::http::HttpCaller;
use belay_tests::relay::{TestRelay, tenant};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// An issuer's key, as a signer and as a set of public keys.
struct Signer {
    key: EncodingKey,
    kid: String,
    public: Value,
}

impl Signer {
    fn new(kid: &str) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let der = pair.to_pkcs8v1().unwrap();
        let x = data_encoding::BASE64URL_NOPAD.encode(pair.public_key().as_ref());
        let public = json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "alg": "EdDSA", "use": "sig" });
        Self { key: EncodingKey::from_ed_der(der.as_ref()), kid: kid.into(), public }
    }

    fn token(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        encode(&header, claims, &self.key).unwrap()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({
        "iss": "https://id.test", "aud": "belay", "sub": "somebody", "tenant": "acme", "scope": "read escalate openid",
        "iat": now() - 10, "nbf": now() - 10, "exp": now() + 600,
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

fn write(path: &Path, keys: &[&Signer]) {
    let keys: Vec<&Value> = keys.iter().map(|signer| &signer.public).collect();
    std::fs::write(path, json!({ "keys": keys }).to_string()).unwrap();
}

/// A relay that takes tokens of one issuer, and where its keys are.
async fn relay_for(signers: &[&Signer]) -> (TestRelay, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("jwks.json");
    write(&keys, signers);
    let relay = TestRelay::start(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\nlook_ups_per_second = 1000000\n[[jwt]]\nissuer = \"https://id.test\"\naudience = \"belay\"\nalgorithm = \"EdDSA\"\njwks_file = {:?}\n",
        keys.display().to_string()
    ))
    .await;
    (relay, dir)
}

async fn status(caller: &HttpCaller, key: &str) -> u16 {
    let answer = caller.http.get(format!("{}/v1/status", caller.url)).bearer_auth(key).send().await.unwrap();
    answer.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_taken_when_every_claim_holds() {
    let signer = Signer::new("one");
    let (relay, _dir) = relay_for(&[&signer]).await;
    let base = relay.caller().await;
    let caller = HttpCaller { key: signer.token(&claims()), ..base.clone() };
    let answer = HttpCaller::good(caller.post("/v1/escalate", &json!({ "query": "hi", "request_id": "r" }))).await;
    // Another token of the same somebody is the same caller.
    let again = HttpCaller { key: signer.token(&with("iat", json!(now() - 5))), ..base.clone() };
    assert_eq!(
        HttpCaller::good(again.post("/v1/escalate", &json!({ "query": "hi", "request_id": "r" }))).await,
        answer
    );
    let (code, refused) = HttpCaller::json(caller.post("/v1/billing/flush", &json!({}))).await;
    assert_eq!((code, &refused["error"]["code"]), (403, &json!("forbidden")), "it has no scope for that");
    for (what, claims) in [
        ("expired", with("exp", json!(now() - 60))),
        ("from tomorrow", with("nbf", json!(now() + 86_400))),
        ("made tomorrow", with("iat", json!(now() + 86_400))),
        ("lives too long", with("exp", json!(now() + 200_000))),
        ("ends before it was made", with("exp", json!(now() - 20))),
        ("for others", with("aud", json!("others"))),
        ("of another issuer", with("iss", json!("https://id.other"))),
        ("of an unknown tenant", with("tenant", json!("nobody"))),
        ("of no tenant's name", with("tenant", json!("../acme"))),
        ("without exp", with("exp", Value::Null)),
        ("without iat", with("iat", Value::Null)),
        ("without aud", with("aud", Value::Null)),
        ("without iss", with("iss", Value::Null)),
        ("without sub", with("sub", Value::Null)),
        ("with an empty sub", with("sub", json!(""))),
        ("without tenant", with("tenant", Value::Null)),
        ("without scope", with("scope", Value::Null)),
        ("with exp as text", with("exp", json!("tomorrow"))),
    ] {
        assert_eq!(status(&base, &signer.token(&claims)).await, 401, "{what}");
    }
    // Another's signature, none, and one that takes the public key for a secret.
    let stranger = Signer::new("one");
    assert_eq!(status(&base, &stranger.token(&claims())).await, 401);
    let unnamed = Signer { kid: "two".into(), ..stranger };
    assert_eq!(status(&base, &unnamed.token(&claims())).await, 401);
    let body = data_encoding::BASE64URL_NOPAD.encode(claims().to_string().as_bytes());
    let none = data_encoding::BASE64URL_NOPAD.encode(br#"{"alg":"none","typ":"JWT","kid":"one"}"#);
    assert_eq!(status(&base, &format!("{none}.{body}.")).await, 401);
    let secret = EncodingKey::from_secret(signer.public["x"].as_str().unwrap().as_bytes());
    let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::HS256) };
    assert_eq!(status(&base, &encode(&header, &claims(), &secret).unwrap()).await, 401);
    // A tenant that is suspended is so at once.
    assert_eq!(status(&base, &caller.key).await, 200);
    relay.relay().admin().suspend(&tenant("acme"), true).await.unwrap();
    assert_eq!(status(&base, &caller.key).await, 403);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_taken_out_of_the_configuration_lets_nobody_in() {
    let signer = Signer::new("one");
    let (mut relay, _dir) = relay_for(&[&signer]).await;
    let base = relay.caller().await;
    let token = signer.token(&claims());
    assert_eq!(status(&base, &token).await, 200);
    let difference = relay.reload(|text| text.replace("https://id.test", "https://id.other")).await.unwrap();
    assert_eq!(difference.applied, ["jwt"]);
    assert_eq!(status(&base, &token).await, 401);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_while_the_relay_runs() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let (relay, dir) = relay_for(&[&old]).await;
    let base = relay.caller().await;
    assert_eq!(status(&base, &new.token(&claims())).await, 401);
    let keys = dir.path().join("jwks.json");
    write(&keys, &[&old, &new]);
    belay_tests::relay::eventually("the new key is taken", async || status(&base, &new.token(&claims())).await == 200)
        .await;
    assert_eq!(status(&base, &old.token(&with("sub", json!("other")))).await, 200, "beside the old one");
    // Half written: those that were there go on.
    std::fs::write(&keys, "{\"keys\": [").unwrap();
    assert_eq!(status(&base, &new.token(&with("sub", json!("third")))).await, 200);
    write(&keys, &[&new]);
    let mut number = 0;
    belay_tests::relay::eventually("the old key is refused", async || {
        number += 1;
        status(&base, &old.token(&with("sub", json!(format!("n{number}"))))).await == 401
    })
    .await;
    relay.stop().await;
}

/// Changes one to three characters of a text, or cuts or doubles a part of it.
fn mutate(random: &mut StdRng, text: &str) -> String {
    const CHARACTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.=";
    let mut bytes = text.as_bytes().to_vec();
    match random.random_range(0..8) {
        0 => bytes.truncate(random.random_range(0..bytes.len())),
        1 => {
            let at = random.random_range(0..bytes.len());
            bytes.insert(at, CHARACTERS[random.random_range(0..CHARACTERS.len())]);
        }
        2 => drop(bytes.remove(random.random_range(0..bytes.len()))),
        _ => {
            for _ in 0..random.random_range(1..=3) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = CHARACTERS[random.random_range(0..CHARACTERS.len())];
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_changed_tokens_and_keys_none_is_taken() {
    let signer = Signer::new("one");
    let (relay, _dir) = relay_for(&[&signer]).await;
    let base = relay.caller().await;
    let token = signer.token(&claims());
    assert_eq!((status(&base, &token).await, status(&base, &base.key).await), (200, 200));
    let seed: u64 = std::env::var("BELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(11);
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut refused = 0;
    for original in [&token, &base.key] {
        for _ in 0..10_000 {
            let changed = mutate(&mut random, original);
            if changed == *original {
                continue;
            }
            assert_eq!(status(&base, &changed).await, 401, "{changed}, changed from {original}, seed {seed}");
            refused += 1;
        }
    }
    assert!(refused > 19_000, "{refused}");
    relay.stop().await;
}

/// A key that is whole, with another id or another secret.
fn key(id: &str, secret: &str) -> secrecy::SecretString {
    let before = format!("bly_live_{id}_{secret}");
    let sum = data_encoding::BASE32_NOPAD.encode(&belay_certs::sha256(before.as_bytes())).to_ascii_lowercase();
    format!("{before}{}", &sum[..6]).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_an_unknown_one_take_the_same_time() {
    let _turn = crate::MACHINE.lock().await;
    let relay = TestRelay::start("").await;
    let made = relay.key("acme", &[KeyScope::Read]).await;
    let keys: &ApiKeys = relay.relay().admin().api_keys();
    let secret = "a".repeat(52);
    let (wrong, unknown) = (key(&made.key.id, &secret), key("aaaaaaaaaaaa", &secret));
    let time = async |key: &secrecy::SecretString| {
        let began = Instant::now();
        let found = keys.authenticate(key).await;
        let took = i128::try_from(began.elapsed().as_nanos()).unwrap();
        assert!(matches!(found, Err(KeyRefusal::Unknown)), "{found:?}");
        took
    };
    let (mut firsts, mut unknowns, mut alike) = (vec![], vec![], vec![]);
    for round in 0..10_000 {
        // The first after a pause is slower than those that follow it, whatever it looks for.
        time(&unknown).await;
        // In every order: what comes later finds other caches.
        let mut took = [0; 3];
        for at in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][round % 6] {
            took[at] = time(if at == 1 { &unknown } else { &wrong }).await;
        }
        firsts.push(took[0]);
        unknowns.push(took[1]);
        alike.push(took[0] - took[2]);
    }
    for times in [&mut firsts, &mut unknowns, &mut alike] {
        times.sort_unstable();
    }
    let (apart, spread) = (firsts[5_000] - unknowns[5_000], alike[7_500] - alike[2_500]);
    eprintln!("wrong and unknown differ by {apart} ns; the middle half of the same key's by {spread} ns");
    assert!(apart.abs() <= spread, "{apart} ns apart, the same key's {spread} ns");
    relay.stop().await;
}
