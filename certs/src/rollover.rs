//! How one authority takes the place of another, with all tunnels up.
//!
//! **Prepare**: the next authority is made, and the one that stands vouches for its key. Devices are told of it when
//! they renew their certificates, and trust it from then on. **Switch**: it signs everything from now on; what the former
//! one has signed holds until it ends, and whoever trusts only the former one still finds the way, since it has vouched
//! for the next. **Retire**: nobody needs the former one any more.
//!
//! All of it lies in one directory: `ca.pem` and `ca.key` stand; `next.pem`, `next.key` and `next-cross.pem` (the word of
//! the one that stands) are prepared; `former.pem` and `cross.pem` are what a switch leaves. A crash in the middle of a
//! switch leaves `next.pem` without `next.key`, and is brought to its end by whoever loads it next.

use crate::ca::{Authority, CERTIFICATE_FILE, KEY_FILE, pem, read_certificate};
use crate::identity::{begins_ms, ends_ms};
use crate::issue::BACKDATED;
use crate::{CertError, file, sha256};
use rustls_pki_types::CertificateDer;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

const NEXT: &str = "next.pem";
const NEXT_KEY: &str = "next.key";
const NEXT_CROSS: &str = "next-cross.pem";
const FORMER: &str = "former.pem";
const CROSS: &str = "cross.pem";
/// What stands before the certificate in `former.pem`: when it was replaced.
const REPLACED: &str = "replaced at (ms since 1970): ";

/// The authority of a relay as it is at one moment.
#[derive(Debug)]
pub struct Standing {
    /// Signs.
    pub current: Authority,
    /// Will take its place.
    pub next: Option<CertificateDer<'static>>,
    /// Had its place.
    pub former: Option<Former>,
    /// Read once: every heartbeat asks for it.
    prepared_ms: Option<u64>,
}

/// An authority that was replaced.
#[derive(Debug)]
pub struct Former {
    /// What some devices still trust, and have been signed by.
    pub certificate: CertificateDer<'static>,
    /// Its word for the one that stands.
    pub cross: CertificateDer<'static>,
    /// When it was replaced, milliseconds since 1970.
    pub replaced_ms: u64,
}

impl Standing {
    /// Whose device certificates are taken.
    #[must_use]
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let former = self.former.as_ref().map(|former| former.certificate.clone());
        std::iter::once(self.current.certificate().clone()).chain(former).collect()
    }

    /// What a server shows after its own certificate: the authority, for those that know only its fingerprint, and the
    /// former one's word for it, for those that know only that one.
    #[must_use]
    pub fn vouched(&self) -> Vec<CertificateDer<'static>> {
        let cross = self.former.as_ref().map(|former| former.cross.clone());
        std::iter::once(self.current.certificate().clone()).chain(cross).collect()
    }

    /// When the next one was prepared, milliseconds since 1970.
    #[must_use]
    pub fn prepared_ms(&self) -> Option<u64> {
        self.prepared_ms
    }

    /// Certificates of devices that were made then or before do not bring what is known of authorities now, milliseconds
    /// since 1970.
    #[must_use]
    pub fn changed_ms(&self) -> Option<u64> {
        self.prepared_ms().or_else(|| Some(self.former.as_ref()?.replaced_ms))
    }

    /// When the one that stands ends, milliseconds since 1970.
    #[must_use]
    pub fn ends_ms(&self) -> u64 {
        ends_ms(self.current.certificate()).unwrap_or(0)
    }
}

/// The authority of a relay, which may become another one while it serves.
#[derive(Debug)]
pub struct Authorities {
    dir: PathBuf,
    standing: RwLock<Arc<Standing>>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Authorities {
    /// Reads what lies in `dir`, and makes an authority there if there is none. Errors: files that are missing or do not
    /// belong together.
    pub fn load_or_create(dir: &Path, now_ms: u64) -> Result<Arc<Self>, CertError> {
        file::create_private_dir(dir)?;
        finish_switch(dir)?;
        Authority::load_or_create(dir, now_ms)?;
        let standing = read(dir)?;
        Ok(Arc::new(Self {
            dir: dir.to_owned(),
            standing: RwLock::new(Arc::new(standing)),
            changing: Mutex::default(),
        }))
    }

    /// As it is now.
    #[must_use]
    pub fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// SHA-256 of the certificate that stands: what invites carry and clients pin.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.standing().current.fingerprint()
    }

    /// Makes the next authority. Errors: `Rollover`, if one is prepared or the former one is still trusted.
    pub fn prepare(&self, now_ms: u64) -> Result<(), CertError> {
        self.change(|standing| {
            if standing.next.is_some() {
                return Err(CertError::Rollover("the next authority is prepared already"));
            }
            if standing.former.is_some() {
                return Err(CertError::Rollover("the former authority is still trusted; retire it first"));
            }
            let next = Authority::create(now_ms)?;
            let cross = standing.current.vouch_for(&next, now_ms)?;
            file::write_private(&self.dir.join(NEXT_CROSS), pem("CERTIFICATE", &cross).as_bytes())?;
            next.write(&self.dir.join(NEXT), &self.dir.join(NEXT_KEY))
        })
    }

    /// Lets the next one take its place. Errors: `Rollover`, if none is prepared.
    pub fn switch(&self, now_ms: u64) -> Result<(), CertError> {
        self.change(|standing| {
            if standing.next.is_none() {
                return Err(CertError::Rollover("no authority is prepared that could take the place of this one"));
            }
            let former = pem("CERTIFICATE", standing.current.certificate());
            file::write_private(&self.dir.join(FORMER), format!("{REPLACED}{now_ms}\n{former}").as_bytes())?;
            // It is not there if this was broken off before: from its move on there is no way back.
            if self.dir.join(NEXT_KEY).exists() {
                rename(&self.dir, NEXT_KEY, KEY_FILE)?;
            }
            finish_switch(&self.dir)
        })
    }

    /// Trusts the former one no more. Errors: `Rollover`, if there is none.
    pub fn retire(&self) -> Result<(), CertError> {
        self.change(|standing| {
            if standing.former.is_none() {
                return Err(CertError::Rollover("no former authority is trusted"));
            }
            remove(&self.dir, FORMER)?;
            remove(&self.dir, CROSS)
        })
    }

    /// Changes what lies on disk, and takes it over. Nothing else changes it meanwhile.
    fn change(&self, deed: impl FnOnce(&Standing) -> Result<(), CertError>) -> Result<(), CertError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever asks for it meanwhile does not wait for keys to be made and files to be written.
        let done = deed(&self.standing());
        // Also what was broken off may have changed something.
        let now = Arc::new(read(&self.dir)?);
        *self.standing.write().unwrap_or_else(PoisonError::into_inner) = now;
        done
    }
}

/// The end of a switch whose key has changed places: the certificates follow.
fn finish_switch(dir: &Path) -> Result<(), CertError> {
    if !dir.join(NEXT).exists() || dir.join(NEXT_KEY).exists() {
        return Ok(());
    }
    if dir.join(NEXT_CROSS).exists() {
        rename(dir, NEXT_CROSS, CROSS)?;
    }
    rename(dir, NEXT, CERTIFICATE_FILE)
}

fn read(dir: &Path) -> Result<Standing, CertError> {
    let path = |name: &str| dir.join(name);
    finish_switch(dir)?;
    let current = Authority::read(&path(CERTIFICATE_FILE), &path(KEY_FILE))?;
    // Without its key it was never finished; one that is finished is read to be sure that it will do.
    let is_prepared = path(NEXT).exists();
    let next = is_prepared.then(|| Authority::read(&path(NEXT), &path(NEXT_KEY))).transpose()?;
    let former = if path(FORMER).exists() && path(CROSS).exists() {
        let text = file::read(&path(FORMER))?;
        let first = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned();
        let replaced_ms = first.strip_prefix(REPLACED).and_then(|digits| digits.parse().ok()).unwrap_or(0);
        let (certificate, cross) = (read_certificate(&path(FORMER))?, read_certificate(&path(CROSS))?);
        // Of a switch that was broken off before it changed anything.
        Some(Former { certificate, cross, replaced_ms }).filter(|it| sha256(&it.certificate) != current.fingerprint())
    } else {
        None
    };
    let next = next.map(|next| next.certificate().clone());
    let backdated_ms = u64::try_from(BACKDATED.as_millis()).unwrap_or(0);
    let prepared_ms = next.as_ref().and_then(|next| begins_ms(next)).map(|begins_ms| begins_ms + backdated_ms);
    Ok(Standing { current, next, former, prepared_ms })
}

fn rename(dir: &Path, from: &str, to: &str) -> Result<(), CertError> {
    let failed = |source| CertError::File { operation: "write", path: dir.join(to).display().to_string(), source };
    fs::rename(dir.join(from), dir.join(to)).map_err(failed)?;
    file::sync_directory(dir).map_err(failed)
}

/// Removes a file for good; one that is gone already is no error.
fn remove(dir: &Path, name: &str) -> Result<(), CertError> {
    let path = dir.join(name);
    let failed = |source| CertError::File { operation: "remove", path: path.display().to_string(), source };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    file::sync_directory(dir).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const NOW: u64 = 1_790_000_000_000;

    fn loaded() -> (TempDir, Arc<Authorities>) {
        let dir = tempfile::tempdir().expect("made");
        let authorities = Authorities::load_or_create(dir.path(), NOW).expect("made");
        (dir, authorities)
    }

    #[test]
    fn one_takes_the_place_of_the_other_and_all_of_it_is_found_again() {
        let (dir, authorities) = loaded();
        let first = authorities.fingerprint();
        assert!(matches!(authorities.switch(NOW), Err(CertError::Rollover(_))));
        assert!(matches!(authorities.retire(), Err(CertError::Rollover(_))));
        authorities.prepare(NOW + 5).expect("prepared");
        assert!(matches!(authorities.prepare(NOW), Err(CertError::Rollover(_))));
        let prepared = authorities.standing();
        assert_eq!((prepared.current.fingerprint(), prepared.prepared_ms()), (first, Some(NOW)));
        let next = sha256(prepared.next.as_ref().expect("there"));
        authorities.switch(NOW + 7).expect("switched");
        let again = Authorities::load_or_create(dir.path(), NOW).expect("read");
        for standing in [authorities.standing(), again.standing()] {
            assert_eq!(standing.current.fingerprint(), next);
            assert!(standing.next.is_none());
            assert_eq!(standing.trusted().iter().map(|one| sha256(one)).collect::<Vec<_>>(), [next, first]);
            assert_eq!(standing.vouched().len(), 2);
            assert_eq!(standing.former.as_ref().map(|former| former.replaced_ms), Some(NOW + 7));
        }
        assert!(matches!(authorities.prepare(NOW), Err(CertError::Rollover(_))), "two formers would be one too many");
        authorities.retire().expect("retired");
        let again = Authorities::load_or_create(dir.path(), NOW).expect("read");
        assert_eq!((again.fingerprint(), again.standing().trusted().len()), (next, 1));
    }

    #[test]
    fn a_switch_that_is_broken_off_anywhere_leaves_one_of_the_two_whole() {
        // What lies there after each of its steps.
        for steps in 0..=4 {
            let (dir, authorities) = loaded();
            authorities.prepare(NOW).expect("prepared");
            let standing = authorities.standing();
            let (first, next) = (authorities.fingerprint(), sha256(standing.next.as_ref().expect("there")));
            let deeds: [(&str, &str); 3] = [(NEXT_KEY, KEY_FILE), (NEXT_CROSS, CROSS), (NEXT, CERTIFICATE_FILE)];
            if steps > 0 {
                fs::copy(dir.path().join(CERTIFICATE_FILE), dir.path().join(FORMER)).expect("copied");
            }
            for (from, to) in deeds.into_iter().take(steps.max(1) - 1) {
                rename(dir.path(), from, to).expect("renamed");
            }
            let found = Authorities::load_or_create(dir.path(), NOW).expect("whole").standing();
            let switched = steps > 1;
            assert_eq!(found.current.fingerprint(), if switched { next } else { first }, "{steps}");
            assert_eq!((found.next.is_none(), found.former.is_some()), (switched, switched), "{steps}");
        }
    }

    #[test]
    fn a_switch_that_fails_halfway_is_done_again() {
        let (dir, authorities) = loaded();
        authorities.prepare(NOW).expect("prepared");
        let next = sha256(authorities.standing().next.as_ref().expect("there"));
        fs::create_dir(dir.path().join(CROSS)).expect("made");
        authorities.switch(NOW).expect_err("something stands in the way");
        fs::remove_dir(dir.path().join(CROSS)).expect("removed");
        authorities.switch(NOW).expect("switched");
        let again = Authorities::load_or_create(dir.path(), NOW).expect("read");
        assert_eq!((authorities.fingerprint(), again.fingerprint()), (next, next));
        assert!(authorities.standing().former.is_some());
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let ((ours, _), (theirs, _)) = (loaded(), loaded());
        fs::copy(theirs.path().join(KEY_FILE), ours.path().join(KEY_FILE)).expect("copied");
        let error = Authorities::load_or_create(ours.path(), NOW).expect_err("two authorities");
        assert!(error.to_string().contains("another one's"), "{error}");
    }
}
