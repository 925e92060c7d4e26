//! Who asks, and whether it may.

use super::callers::{Callers, Known, device_of_key};
use super::front::Peer;
use super::jwt::{JwtKeysError, Tokens};
use crate::admission::{Admission, Verdict};
use crate::api_keys::{ApiKeys, KeyRefusal};
use crate::config::{Http, Issuer};
use crate::escalate::Caller;
use crate::registry::Registry;
use crate::store::central;
use crate::store::central::keys::KeyScope;
use crate::store::executor::{Db, Store};
use belay_certs::sha256;
use belay_http::refusal::Refusal;
use belay_protocol::message::FailureCode;
use belay_transport::env::Env;
use http::header::{AUTHORIZATION, HeaderMap};
use http::request::Parts;
use http::{HeaderName, StatusCode};
use secrecy::SecretString;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The headers in which callers show their key.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];
/// The longest credential that is looked at, in bytes.
const MAX_CREDENTIAL: usize = 8 << 10;

/// Tells callers apart.
#[derive(Debug)]
pub(super) struct Access {
    keys: ApiKeys,
    tokens: RwLock<Arc<Tokens>>,
    /// Those that they were made of.
    issuers: Mutex<Vec<Issuer>>,
    store: Store,
    registry: Arc<Registry>,
    env: Env,
    /// Keys that had to be looked up, by address. It lets as many through twice, the second time those that have proven
    /// their address, which over TCP all have.
    guesses: Mutex<Admission>,
}

/// A caller that has shown who it is.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) caller: Caller,
    scopes: Vec<KeyScope>,
}

impl Admitted {
    /// Errors: it may not do that.
    pub(super) fn needs(&self, scope: KeyScope) -> Result<(), Refusal> {
        if self.may(scope) {
            return Ok(());
        }
        let message = format!("this needs the scope {scope}, which the key does not have");
        let refusal = Refusal::new(StatusCode::FORBIDDEN, "forbidden", message);
        Err(refusal.remedy("ask the operator of the relay for a key with that scope"))
    }

    pub(super) fn may(&self, scope: KeyScope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// What every caller that gives no access hears, whatever the reason: a stranger learns nothing from it.
fn unauthenticated() -> Refusal {
    let message = "the key gives no access: it is missing, wrong, expired or revoked";
    Refusal::new(StatusCode::UNAUTHORIZED, FailureCode::UNAUTHENTICATED.name(), message)
        .remedy("send the header \"authorization: Bearer bly_live_…\"; keys are made with: belayd key create")
}

impl Access {
    /// Callers of that store. Errors: an issuer's keys cannot be used.
    pub(super) fn new(config: &Http, store: Store, registry: Arc<Registry>, env: Env) -> Result<Self, JwtKeysError> {
        let guesses = Mutex::new(Admission::new(config.look_ups_per_second.div_ceil(2)));
        let keys = ApiKeys::new(store.clone(), env.clone());
        let tokens = RwLock::new(Arc::new(Tokens::load(&config.issuers)?));
        let issuers = Mutex::new(config.issuers.clone());
        Ok(Self { keys, tokens, issuers, store, registry, env, guesses })
    }

    /// The issuers of another configuration; `None`: they are the same. Errors: the keys of one cannot be used.
    pub(super) fn prepare(&self, config: &Http) -> Result<Option<(Tokens, Vec<Issuer>)>, JwtKeysError> {
        if *self.issuers.lock().unwrap_or_else(PoisonError::into_inner) == config.issuers {
            return Ok(None);
        }
        Ok(Some((Tokens::load(&config.issuers)?, config.issuers.clone())))
    }

    /// Puts them in force. Whoever came with a token shows it anew.
    pub(super) fn take(&self, next: Option<(Tokens, Vec<Issuer>)>) {
        let Some((tokens, issuers)) = next else { return };
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        *self.issuers.lock().unwrap_or_else(PoisonError::into_inner) = issuers;
        self.callers().close_tokens();
    }

    fn callers(&self) -> &Callers {
        self.registry.callers()
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who asks. Errors: nobody knows.
    pub(super) async fn admit(&self, head: &Parts) -> Result<Admitted, Refusal> {
        let shown = credential(&head.headers).ok_or_else(unauthenticated)?;
        let hash = sha256(shown.as_bytes());
        // A key that was taken away makes good tokens no more.
        if shown.contains('.') && self.tokens().read_anew() {
            self.callers().close_tokens();
        }
        let known = match self.callers().find(&hash, self.env.clock.now_ms()) {
            Some(known) => known,
            None => {
                self.may_look_up(head)?;
                self.look_up(shown, hash).await?
            }
        };
        let caller = Caller {
            tenant: known.tenant,
            device: known.device,
            key: known.key,
            revoked: known.revoked,
            // There is no tunnel that could be lost.
            gone: CancellationToken::new(),
        };
        Ok(Admitted { caller, scopes: known.scopes })
    }

    /// Errors: that address has shown too much that had to be looked up.
    fn may_look_up(&self, head: &Parts) -> Result<(), Refusal> {
        let Some(Peer(remote)) = head.extensions.get::<Peer>() else { return Ok(()) };
        let mut guesses = self.guesses.lock().unwrap_or_else(PoisonError::into_inner);
        if guesses.judge(remote.ip(), true, Instant::now()) == Verdict::Accept {
            return Ok(());
        }
        let message = "too many keys from this address had to be looked up";
        let mut refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, FailureCode::RATE_LIMITED.name(), message);
        refusal.retry_after_ms = Some(1000);
        Err(refusal.remedy("try again in a second"))
    }

    async fn look_up(&self, shown: &str, hash: [u8; 32]) -> Result<Known, Refusal> {
        loop {
            let losses = self.callers().losses();
            // A key of belay's has no dots; a token has two; of keys that came over nobody knows.
            let token = if shown.contains('.') { self.by_token(shown).await? } else { None };
            let mut known = match token {
                Some(known) => known,
                None => self.by_key(shown).await?,
            };
            if self.callers().remember(hash, &mut known, losses) {
                return Ok(known);
            }
        }
    }

    async fn by_key(&self, shown: &str) -> Result<Known, Refusal> {
        let key = self.keys.authenticate(&SecretString::from(shown)).await.map_err(|refusal| refused(&refusal))?;
        Ok(Known {
            tenant: key.tenant,
            device: device_of_key(&key.id).ok_or_else(unauthenticated)?,
            key: Some(key.id),
            scopes: key.scopes,
            expires_ms: key.expires_ms,
            revoked: CancellationToken::new(),
        })
    }

    /// Its issuer says who pays: that there is such a tenant is the relay's to know. `None`: it is no token, or no good
    /// one.
    async fn by_token(&self, shown: &str) -> Result<Option<Known>, Refusal> {
        let Some(known) = self.tokens().verify(shown, self.env.clock.now_ms()) else { return Ok(None) };
        let id = known.tenant.clone();
        let found = self.store.run(Db::Central, move |connection| central::tenant(connection, &id)).await;
        match found {
            Ok(Some(tenant)) if tenant.terms.suspended => Err(refused(&KeyRefusal::Suspended)),
            Ok(Some(_)) => Ok(Some(known)),
            Ok(None) => Err(unauthenticated()),
            Err(error) => Err(refused(&KeyRefusal::Store(error))),
        }
    }
}

fn refused(refusal: &KeyRefusal) -> Refusal {
    match refusal {
        KeyRefusal::Store(error) => {
            warn!(%error, "cannot look a key up");
            let message = "the relay cannot look the key up";
            let code = FailureCode::STORE_UNAVAILABLE.name();
            let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, code, message).remedy("try again");
            refusal.retry_after_ms = Some(1000);
            refusal
        }
        // Whoever has the key may know.
        KeyRefusal::Suspended => {
            let message = "the tenant is suspended";
            Refusal::new(StatusCode::FORBIDDEN, FailureCode::SUSPENDED.name(), message)
                .remedy("ask the operator of the relay")
        }
        _ => unauthenticated(),
    }
}

/// What a caller shows: one thing, in one place.
fn credential(headers: &HeaderMap) -> Option<&str> {
    let mut shown = headers.get_all(AUTHORIZATION).iter().map(|value| value.to_str().ok().and_then(bearer)).chain(
        KEY_HEADERS.into_iter().flat_map(|name| {
            let all = headers.get_all(HeaderName::from_static(name)).iter();
            all.map(|value| value.to_str().ok().map(str::trim))
        }),
    );
    let first = shown.next()??;
    // Two that differ would let somebody in as either.
    let agree = shown.all(|other| other == Some(first));
    (agree && !first.is_empty() && first.len() <= MAX_CREDENTIAL).then_some(first)
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn shown(headers: &[(&'static str, &'static str)]) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        credential(&map).map(str::to_owned)
    }

    #[test]
    fn a_caller_shows_one_thing() {
        for headers in [
            &[("authorization", "Bearer k")][..],
            &[("authorization", "bearer  k ")],
            &[("x-api-key", "k")],
            &[("api-key", " k")],
            &[("authorization", "Bearer k"), ("x-api-key", "k")],
        ] {
            assert_eq!(shown(headers).as_deref(), Some("k"), "{headers:?}");
        }
        for headers in [
            &[][..],
            &[("authorization", "k")],
            &[("authorization", "Basic k")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Bearer k"), ("x-api-key", "other")],
            &[("authorization", "Bearer k"), ("authorization", "Bearer other")],
            &[("authorization", "Basic k"), ("x-api-key", "k")],
        ] {
            assert_eq!(shown(headers), None, "{headers:?}");
        }
    }
}
