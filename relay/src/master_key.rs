//! Which master key a state directory is under, and how it comes under another.
//!
//! `master.id` in the state directory names the key without giving it away. A relay does not start with another key: it
//! would sign and seal what nobody can prove or open later. A rotation brings one book after the other over, each in a
//! transaction of its own, while the relay does not run; meanwhile `master.id` names both keys, so that one that is broken
//! off is finished by doing it again, and nothing starts in between.

use crate::secrets::{KeySealer, MasterKey};
use crate::store::books::SEAL;
use crate::store::executor::{Db, Store};
use crate::store::ledger::rekey::{Rekeyed, rekey, stands};
use crate::store::ledger::seal::SealKey;
use crate::store::{StoreError, central};
use belay_certs::{CertError, file};
use belay_protocol::id::TenantId;
use belay_transport::env::Random;
use secrecy::ExposeSecret;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The file that names the key.
const ID: &str = "master.id";
const ROTATING: &str = "rotating ";

/// Why a master key cannot be used or changed.
#[derive(Debug, Error)]
pub enum MasterKeyError {
    /// It is not the one that the books are under.
    #[error(
        "{} is not the master key that the books of this relay are under (it is {found}, they are under {wanted}); bring the right file back",
        path.display()
    )]
    Other {
        /// Where it lies.
        path: PathBuf,
        /// Its name.
        found: String,
        /// The right one's.
        wanted: String,
    },
    /// Some books are under another key than others.
    #[error("a change of the master key was broken off; finish it with: belayd master-key rotate")]
    BrokenOff,
    /// A rotation that was broken off was to another key.
    #[error("{} is not the key that the rotation which was broken off was to", path.display())]
    AnotherAim {
        /// Where it lies.
        path: PathBuf,
    },
    /// The new key is the old one.
    #[error("{} is the master key already", path.display())]
    Same {
        /// Where it lies.
        path: PathBuf,
    },
    /// A tenant's book could not be brought over.
    #[error("the book of {tenant} is not under this master key")]
    Book {
        /// Whose.
        tenant: TenantId,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] CertError),
    /// The tenants are not known.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl MasterKeyError {
    /// It is the key, and no disk: another attempt would find the same.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Store(_))
    }
}

/// What `master.id` says.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Nothing,
    One(String),
    Both { old: String, new: String },
}

fn named(state: &Path) -> Result<Named, CertError> {
    let text = match file::read(&state.join(ID)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(CertError::File { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(Named::Nothing),
        Err(error) => return Err(error),
    };
    Ok(match text.strip_prefix(ROTATING).and_then(|both| both.split_once(' ')) {
        Some((old, new)) => Named::Both { old: old.to_owned(), new: new.to_owned() },
        None => Named::One(text),
    })
}

/// The name of the key that a directory is under, a state directory or a backup. `None`: it names none, or two.
#[must_use]
pub fn name_in(dir: &Path) -> Option<String> {
    match named(dir) {
        Ok(Named::One(name)) => Some(name),
        _ => None,
    }
}

/// True if a rotation was broken off in that directory, or is under way.
#[must_use]
pub fn is_rotating(dir: &Path) -> bool {
    matches!(named(dir), Ok(Named::Both { .. }))
}

/// Sees to it that `master`, read from `path`, is the key that the books are under. A state directory that names none is
/// under this one from now on, if its books, which are in `store`, say nothing else. Errors: `Other`, `BrokenOff`, `Book`.
pub async fn claim(state: &Path, master: &MasterKey, path: &Path, store: Option<&Store>) -> Result<(), MasterKeyError> {
    let found = master.id();
    match named(state)? {
        Named::One(wanted) if wanted == found => return Ok(()),
        Named::One(wanted) => return Err(MasterKeyError::Other { path: path.to_owned(), found, wanted }),
        Named::Both { .. } => return Err(MasterKeyError::BrokenOff),
        Named::Nothing => {}
    }
    if let Some(store) = store {
        all_stand(store, &[master], Unreadable::Passed).await?;
    }
    Ok(file::write_private(&state.join(ID), found.as_bytes())?)
}

/// What becomes of a book that cannot be read, and so says nothing of its key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    /// Its tenant is told so, and all others are served.
    Passed,
    /// Nothing is done.
    Told,
}

/// Sees to it that every book is under one of these keys.
async fn all_stand(
    store: &Store,
    masters: &[&MasterKey],
    unreadable: Unreadable,
) -> Result<Vec<TenantId>, MasterKeyError> {
    let tenants = store.run(Db::Central, central::tenants).await?;
    let mut names = vec![];
    for tenant in tenants {
        let (id, of) = (tenant.id.clone(), tenant.id.clone());
        let seals: Vec<SealKey> = masters.iter().map(|master| SealKey::new(&master.derive(SEAL))).collect();
        let sealers = masters.iter().map(|master| KeySealer::new(master)).collect::<Result<Vec<_>, _>>()?;
        let looked = store.run(Db::Tenant(id.clone()), move |connection| {
            stands(connection, &of, &seals, |provider, key| {
                sealers.iter().any(|sealer| sealer.open(&of, provider, key).is_some())
            })
        });
        match looked.await {
            Err(source) if unreadable == Unreadable::Told || matches!(source, StoreError::Corrupt { .. }) => {
                return Err(MasterKeyError::Book { tenant: id, source });
            }
            _ => {}
        }
        names.push(id);
    }
    Ok(names)
}

/// What a rotation did.
#[derive(Debug, Default)]
pub struct Rotated {
    /// Books that were brought over or were there already.
    pub tenants: u64,
    /// What in them.
    pub all: Rekeyed,
    /// The new key lies there, and is to be put where the configuration wants it. `None`: it is in its place.
    pub to_place: Option<PathBuf>,
}

/// Brings all books of a relay that does not run under another key. `at`: where the configuration has it. `to`: a file
/// with the new one, made if it is not there; without it, one is made and takes the place of the old file. `told` hears
/// how many of how many books are done.
pub async fn rotate(
    (state, at): (&Path, &Path),
    to: Option<&Path>,
    store: &Store,
    random: &Random,
    told: impl Fn(usize, usize),
) -> Result<Rotated, MasterKeyError> {
    let beside = at.with_extension("key.next");
    let path = to.unwrap_or(&beside);
    let old = MasterKey::load(at, None)?;
    let known = named(state)?;
    // One that was broken off after the new key had come to its place: books are looked at, and that is all.
    let is_placed = matches!(&known, Named::Both { new, .. } if *new == old.id());
    if let Named::One(wanted) | Named::Both { old: wanted, .. } = &known
        && !is_placed
        && *wanted != old.id()
    {
        return Err(MasterKeyError::Other { path: at.to_owned(), found: old.id(), wanted: wanted.clone() });
    }
    let new = if is_placed { old.clone() } else { MasterKey::load(path, Some(random))? };
    match known {
        _ if is_placed => {}
        Named::Both { new: aim, .. } if aim != new.id() => {
            return Err(MasterKeyError::AnotherAim { path: path.to_owned() });
        }
        _ if old.id() == new.id() => return Err(MasterKeyError::Same { path: path.to_owned() }),
        _ => {}
    }
    // One that stands in the way is found before anything has changed.
    let tenants = all_stand(store, &[&old, &new], Unreadable::Told).await?;
    if !is_placed {
        file::write_private(&state.join(ID), format!("{ROTATING}{} {}", old.id(), new.id()).as_bytes())?;
    }
    let (mut rotated, all) = (Rotated::default(), tenants.len());
    for tenant in tenants {
        let book = over(store, &tenant, (&old, &new), random).await;
        let book = book.map_err(|source| MasterKeyError::Book { tenant, source })?;
        rotated.tenants += 1;
        rotated.all.checkpoints += book.checkpoints;
        rotated.all.provider_keys += book.provider_keys;
        told(usize::try_from(rotated.tenants).unwrap_or(all), all);
    }
    if to.is_some() && !is_placed {
        rotated.to_place = Some(path.to_owned());
    } else if !is_placed {
        file::take_place(&beside, at)?;
    }
    file::write_private(&state.join(ID), new.id().as_bytes())?;
    Ok(rotated)
}

async fn over(
    store: &Store,
    tenant: &TenantId,
    (old, new): (&MasterKey, &MasterKey),
    random: &Random,
) -> Result<Rekeyed, StoreError> {
    let seals = [old, new].map(|master| SealKey::new(&master.derive(SEAL)));
    let sealer = |master| {
        KeySealer::new(master).map_err(|error| StoreError::Failed { operation: "seal keys", why: error.to_string() })
    };
    let (opener, sealer, of, random) = (sealer(old)?, sealer(new)?, tenant.clone(), random.clone());
    store
        .run(Db::Tenant(tenant.clone()), move |connection| {
            rekey(connection, &of, (&seals[0], &seals[1]), |provider, key| {
                if sealer.open(&of, provider, key).is_some() {
                    return Ok(None);
                }
                let unreadable = || StoreError::Corrupt {
                    what: "a book",
                    why: format!("its key for {provider} was not sealed under this master key"),
                };
                let opened = opener.open(&of, provider, key).ok_or_else(unreadable)?;
                let anew = sealer.seal(&of, provider, &opened.expose_secret().into(), &random);
                anew.map(Some).map_err(|error| StoreError::Failed { operation: "seal a key", why: error.to_string() })
            })
        })
        .await
}
