//! What content is: its digest and size, and the parts of what has parts.

use super::place::{PlaceError, Sig};
use belay_protocol::cut::parts;
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKind, Parts};
use std::io::{self, Read};

/// What content of that size is. Errors: those of the reader; it has more or fewer bytes.
pub fn sig(kind: ItemKind, size: u64, reader: impl Read, meta: String) -> io::Result<Sig> {
    Ok(sig_and_parts(kind, size, reader, meta)?.0)
}

/// The same, and the parts of what has parts.
pub fn sig_and_parts(
    kind: ItemKind,
    size: u64,
    mut reader: impl Read,
    meta: String,
) -> io::Result<(Sig, Option<Parts>)> {
    let mut cut = None;
    let digest = if size <= INLINE_BYTES as u64 {
        let mut bytes = vec![];
        (&mut reader).take(size + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Digest::of(&bytes)
    } else {
        let parts = parts(kind, size, &mut reader)?;
        if parts.size() != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let digest = parts.digest();
        cut = Some(parts);
        digest
    };
    Ok((Sig { digest, size, meta }, cut))
}

/// More than an item of that kind may have. Errors: `Unfit`.
pub fn fits(kind: ItemKind, size: u64) -> Result<(), PlaceError> {
    let most = kind.most_bytes();
    if size <= most {
        return Ok(());
    }
    Err(PlaceError::Unfit(format!("it has {size} bytes, at most {most} are synced; ignore it, or make it smaller")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_largest() {
        for (kind, most) in
            [(ItemKind::DOCUMENT, 512 << 20), (ItemKind::ADAPTER, 2 << 30), (ItemKind::SETTING, 32 << 10)]
        {
            assert!(fits(kind, most).is_ok());
            let why = fits(kind, most + 1).expect_err("too large").to_string();
            assert!(why.contains(&format!("at most {most} are synced")), "{why}");
        }
    }
}
