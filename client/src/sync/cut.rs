//! Content in parts: documents are cut where their content says, so that an edit changes few parts; adapters at every
//! mebibyte.

use super::place::{PlaceError, Sig};
use belay_protocol::item::{ADAPTER_PART, Digest, INLINE_BYTES, ItemKind, Part, Parts, document_parts};
use fastcdc::v2020::StreamCDC;
use std::io::{self, Read};

/// Gives each piece of content to `each`, in order.
fn pieces(
    kind: ItemKind,
    size: u64,
    reader: impl Read,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    if kind == ItemKind::ADAPTER {
        let mut reader = reader;
        let mut piece = vec![];
        loop {
            piece.clear();
            (&mut reader).take(u64::from(ADAPTER_PART)).read_to_end(&mut piece)?;
            if piece.is_empty() {
                return Ok(());
            }
            each(&piece)?;
        }
    }
    let (least, usual, most) = document_parts(size);
    for chunk in StreamCDC::new(reader, least as usize, usual as usize, most as usize) {
        each(&chunk?.data)?;
    }
    Ok(())
}

/// The parts of content of that size.
pub fn parts(kind: ItemKind, size: u64, reader: impl Read) -> io::Result<Parts> {
    let mut parts = vec![];
    pieces(kind, size, reader, |piece| {
        let size = u32::try_from(piece.len()).map_err(io::Error::other)?;
        parts.push(Part { digest: Digest::of(piece), size });
        Ok(())
    })?;
    Parts::new(parts).map_err(io::Error::other)
}

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

    /// What a mebibyte of a known stream is cut into.
    const PARTS_OF_A_MIB: usize = 53;
    const DIGEST_OF_A_MIB: &str = "729b20854d53d0373db94ada4eed34724c03534c1f06751f7605af2487d00227";

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

    #[test]
    fn an_edit_changes_few_parts() {
        let block = |number: u64| Digest::of(&number.to_le_bytes()).0;
        let mut content: Vec<u8> = (0..10 << 15).flat_map(block).collect();
        let cut = |content: &[u8]| parts(ItemKind::DOCUMENT, content.len() as u64, content).expect("cut");
        let before = cut(&content);
        assert_eq!(before.size(), 10 << 20);
        content.insert(5 << 20, b'!');
        let after = cut(&content);
        let known: std::collections::HashSet<_> = before.all().iter().map(|part| part.digest).collect();
        let new: u64 =
            after.all().iter().filter(|part| !known.contains(&part.digest)).map(|part| u64::from(part.size)).sum();
        assert!(new < 150 << 10, "{new} bytes of new parts");
        // Frozen: cut elsewhere, every large document of every computer would count as edited.
        let golden = |size: usize| cut(&content[..size]);
        assert_eq!(golden(1 << 20).all().len(), PARTS_OF_A_MIB);
        assert_eq!(golden(1 << 20).digest().to_string(), DIGEST_OF_A_MIB);
        let adapter = parts(ItemKind::ADAPTER, content.len() as u64, &content[..]).expect("cut");
        assert_eq!(adapter.all().len(), 11);
        assert_eq!(adapter.all()[10].size, 1);
    }
}
