//! Content in parts: documents are cut where their content says, so that an edit changes few parts; adapters at every
//! mebibyte.

use crate::item::{ADAPTER_PART, Digest, ItemKind, Part, Parts, document_parts};
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

/// The parts of content of that size. Errors: those of the reader; it has more parts than an item may have.
pub fn parts(kind: ItemKind, size: u64, reader: impl Read) -> io::Result<Parts> {
    let mut parts = vec![];
    pieces(kind, size, reader, |piece| {
        let size = u32::try_from(piece.len()).map_err(io::Error::other)?;
        parts.push(Part { digest: Digest::of(piece), size });
        Ok(())
    })?;
    Parts::new(parts).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a mebibyte of a known stream is cut into.
    const PARTS_OF_A_MIB: usize = 53;
    const DIGEST_OF_A_MIB: &str = "729b20854d53d0373db94ada4eed34724c03534c1f06751f7605af2487d00227";

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
