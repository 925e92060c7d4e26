//! The rows of requests: what was asked, at which terms, and how it ended.

use super::chain::{Chain, Evidence, Hash, Transfer};
use super::usage::{Class, Subject};
use super::{Account, TransferKind, credits, state};
use crate::pricing::PriceSnapshot;
use crate::store::StoreError;
use aws_lc_rs::digest::{SHA256, digest};
use belay_protocol::id::RequestId;
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::LazyLock;

/// A model of a provider that may serve a request, and what it charges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The provider's name in the configuration.
    pub provider: String,
    /// The provider's name for the model.
    pub model: String,
    /// The prices that will be charged.
    pub price: PriceSnapshot,
    /// The provider takes no key, so that nobody needs one of his own.
    #[serde(skip)]
    pub keyless: bool,
}

impl Offer {
    /// The same at another multiplier.
    #[must_use]
    pub(crate) fn multiplied(&self, multiplier_bp: u32) -> Self {
        Self { price: PriceSnapshot { multiplier_bp, ..self.price.clone() }, ..self.clone() }
    }
}

/// Offers as they are written down. Most requests of a thread are at the terms of the one before: its
/// text, its digest and what it reads as are kept.
struct Written {
    offers: Vec<Offer>,
    text: String,
    digest: Hash,
}

thread_local! {
    static LAST: RefCell<Option<Rc<Written>>> = const { RefCell::new(None) };
}

impl Written {
    fn last_if(is_it: impl Fn(&Self) -> bool) -> Option<Rc<Self>> {
        LAST.with_borrow(|last| last.as_ref().filter(|last| is_it(last)).cloned())
    }

    fn keep(offers: Vec<Offer>, text: String) -> Rc<Self> {
        let digest = terms_digest(&text);
        let written = Rc::new(Self { offers, text, digest });
        LAST.set(Some(Rc::clone(&written)));
        written
    }
}

/// Writes down what was offered, once for all requests at the same terms. Returns its number, and what an
/// entry proves of it.
pub(crate) fn keep_terms(connection: &Connection, offers: &[Offer]) -> Result<(i64, Hash), StoreError> {
    let written = match Written::last_if(|last| last.offers == offers) {
        Some(last) => last,
        None => {
            let text = serde_json::to_string(offers)
                .map_err(|error| StoreError::Failed { operation: "encode a price", why: error.to_string() })?;
            Written::keep(offers.to_vec(), text)
        }
    };
    let known = connection
        .prepare_cached("SELECT id FROM terms WHERE digest = ?1")?
        .query_row([written.digest], |row| row.get(0))
        .optional()?;
    let id = match known {
        Some(id) => id,
        None => connection
            .prepare_cached("INSERT INTO terms (digest, terms) VALUES (?1, ?2) RETURNING id")?
            .query_row(params![written.digest, written.text], |row| row.get(0))?,
    };
    Ok((id, written.digest))
}

pub(crate) fn terms_digest(text: &str) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    hash
}

/// The terms that a request was taken at, and what an entry proves of them.
pub(crate) fn terms(connection: &Connection, id: i64) -> Result<(Vec<Offer>, Hash), StoreError> {
    let mut statement = connection.prepare_cached("SELECT terms FROM terms WHERE id = ?1")?;
    let mut rows = statement.query([id])?;
    let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let text = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
    // `keyless` is not written down: it is no matter of a settlement.
    if let Some(last) = Written::last_if(|last| last.text == text) {
        return Ok((last.offers.clone(), last.digest));
    }
    Ok((read_terms(text)?, terms_digest(text)))
}

/// What an entry proves of the terms with that number.
pub(crate) fn proof_of_terms(connection: &Connection, id: i64) -> Result<Hash, StoreError> {
    Ok(connection.prepare_cached("SELECT digest FROM terms WHERE id = ?1")?.query_row([id], |row| row.get(0))?)
}

/// Reads terms as they are written down.
pub(crate) fn read_terms(text: &str) -> Result<Vec<Offer>, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt { what: "terms", why: error.to_string() })
}

/// A request whose money is set aside, as it is written down.
#[derive(Debug)]
pub(crate) struct Opened<'a> {
    pub(crate) request_id: RequestId,
    pub(crate) device: &'a str,
    pub(crate) key: &'a str,
    pub(crate) class: Class,
    pub(crate) digest: [u8; 32],
    pub(crate) boot: String,
    /// Its number and its digest.
    pub(crate) terms: (i64, Hash),
    pub(crate) input_bytes: i64,
    pub(crate) held: NanoUsd,
    pub(crate) from_credits: NanoUsd,
    pub(crate) created_ms: i64,
}

impl Opened<'_> {
    /// What the hold's entry proves of it.
    fn evidence(&self) -> Hash {
        let numbers = [self.class as i64, self.input_bytes, self.held.0, self.from_credits.0, self.created_ms];
        opening("hold", [self.device, self.key, &self.boot], [&self.digest, &self.terms.1], numbers).finish()
    }
}

/// What is proven of a request in any state.
fn opening(what: &str, texts: [&str; 3], digests: [&[u8]; 2], numbers: [i64; 5]) -> Evidence {
    let evidence = texts.into_iter().fold(Evidence::new(what), Evidence::text);
    let evidence = digests.into_iter().fold(evidence, Evidence::bytes);
    numbers.into_iter().fold(evidence, Evidence::number)
}

/// Writes a request down and moves its money, out of the credits first.
pub(crate) fn set_aside(connection: &Connection, opened: &Opened<'_>, chain: &mut Chain<'_>) -> Result<(), StoreError> {
    open(connection, opened)?;
    if opened.from_credits > NanoUsd::ZERO {
        credits::draw(connection, opened.request_id, opened.from_credits)?;
    }
    let transfer = |kind, from, amount| Transfer::new(kind, from, Account::Held, amount).of(opened.request_id);
    chain.post(&transfer(TransferKind::HoldCredits, Account::Credits, opened.from_credits))?;
    let rest = opened.held - opened.from_credits;
    chain.record(&transfer(TransferKind::Hold, Account::Prepaid, rest).proving(opened.evidence()))?;
    chain.finish()
}

/// Writes it down, in place of a voided one.
fn open(connection: &Connection, opened: &Opened<'_>) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO request (request_id, device, key, class, digest, state, boot, terms, input_bytes, held_nano,
                                  credits_nano, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, ?9, ?10, ?11)
             ON CONFLICT (request_id) DO UPDATE SET state = 0, key = excluded.key, class = excluded.class, boot = excluded.boot,
                 terms = excluded.terms, input_bytes = excluded.input_bytes, held_nano = excluded.held_nano,
                 credits_nano = excluded.credits_nano, created_ms = excluded.created_ms,
                 finished_ms = NULL",
        )?
        .execute(params![
            opened.request_id.0,
            opened.device,
            opened.key,
            opened.class as i64,
            opened.digest,
            opened.boot,
            opened.terms.0,
            opened.input_bytes,
            opened.held.0,
            opened.from_credits.0,
            opened.created_ms,
        ])?;
    Ok(())
}

/// A row as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) row: i64,
    pub(crate) request_id: RequestId,
    pub(crate) device: String,
    pub(crate) key: String,
    pub(crate) class: i64,
    pub(crate) digest: Vec<u8>,
    pub(crate) state: i64,
    pub(crate) boot: String,
    pub(crate) terms: i64,
    pub(crate) input_bytes: i64,
    pub(crate) held: NanoUsd,
    pub(crate) from_credits: NanoUsd,
    pub(crate) provider: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) cost: NanoUsd,
    pub(crate) absorbed: NanoUsd,
    pub(crate) estimated: bool,
    pub(crate) end: Option<Vec<u8>>,
    pub(crate) created_ms: i64,
    pub(crate) finished_ms: Option<i64>,
    /// It goes on with a conversation.
    pub(crate) has_session: bool,
}

/// The columns of [`Stored`], in its order.
pub(crate) const COLUMNS: &str = "request.id, request.request_id, device, key, class, digest, state, boot, terms, \
    input_bytes, held_nano, credits_nano, provider, model, cost_nano, absorbed_nano, estimated, end, \
    created_ms, finished_ms, request.session IS NOT NULL";

impl Stored {
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let money = |index| row.get(index).map(NanoUsd);
        Ok(Self {
            row: row.get(0)?,
            request_id: RequestId(row.get(1)?),
            device: row.get(2)?,
            key: row.get(3)?,
            class: row.get(4)?,
            digest: row.get(5)?,
            state: row.get(6)?,
            boot: row.get(7)?,
            terms: row.get(8)?,
            input_bytes: row.get(9)?,
            held: money(10)?,
            from_credits: money(11)?,
            provider: row.get(12)?,
            model: row.get(13)?,
            cost: money(14)?,
            absorbed: money(15)?,
            estimated: row.get(16)?,
            end: row.get(17)?,
            created_ms: row.get(18)?,
            finished_ms: row.get(19)?,
            has_session: row.get(20)?,
        })
    }

    /// Which of its offers ran.
    pub(crate) fn ran<'a>(&self, offers: &'a [Offer]) -> Option<&'a Offer> {
        offers
            .iter()
            .find(|offer| self.provider.as_ref() == Some(&offer.provider) && self.model.as_ref() == Some(&offer.model))
    }

    /// Whom and what its usage is about.
    pub(crate) fn subject(&self) -> Result<Subject, StoreError> {
        Ok(Subject {
            device: self.device.clone(),
            key: self.key.clone(),
            class: Class::read(self.class)?,
            provider: self.provider.clone().unwrap_or_default(),
            model: self.model.clone().unwrap_or_default(),
        })
    }

    /// Reads device, key, class, provider and model from five columns.
    pub(crate) fn subject_at(row: &Row<'_>, at: usize) -> Result<Subject, StoreError> {
        Ok(Subject {
            device: row.get(at)?,
            key: row.get(at + 1)?,
            class: Class::read(row.get(at + 2)?)?,
            provider: row.get(at + 3)?,
            model: row.get(at + 4)?,
        })
    }

    fn opening(&self, what: &str, terms: &Hash) -> Evidence {
        let numbers = [self.class, self.input_bytes, self.held.0, self.from_credits.0, self.created_ms];
        opening(what, [&self.device, &self.key, &self.boot], [&self.digest, terms], numbers)
    }

    /// What the last entry about its state proves of it, in that state, and of its terms.
    pub(crate) fn evidence(&self, terms: &Hash) -> Hash {
        match self.state {
            state::OPEN => self.opening("hold", terms).finish(),
            state::VOIDED => self.opening("void", terms).number(self.finished_ms.unwrap_or(0)).finish(),
            _ => self
                .opening("settle", terms)
                .optional(self.provider.as_deref().map(str::as_bytes))
                .optional(self.model.as_deref().map(str::as_bytes))
                .number(self.cost.0)
                .number(self.absorbed.0)
                .optional(self.end.as_deref())
                .number(self.finished_ms.unwrap_or(0))
                .finish(),
        }
    }
}

/// Finds a request.
pub(crate) fn find(connection: &Connection, request_id: RequestId) -> Result<Option<Stored>, StoreError> {
    static SQL: LazyLock<String> = LazyLock::new(|| format!("SELECT {COLUMNS} FROM request WHERE request_id = ?1"));
    Ok(connection.prepare_cached(&SQL)?.query_row([request_id.0], Stored::read).optional()?)
}
