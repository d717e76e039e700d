//! The ID block header, and the ID block and page of signatures that SEV-SNP is given.
//!
//! The header has the numbers of both, without what is zero anyway. Offsets in the page are those
//! of the SEV-SNP firmware ABI, "ID Authentication Information".

use igvm_defs::{
    IGVM_VHS_SNP_ID_BLOCK, IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY, IGVM_VHS_SNP_ID_BLOCK_SIGNATURE,
};
use zerocopy::FromZeros;

use crate::IdBlock;

const BLOCK_SIGNATURE: usize = 0x40;
const ID_KEY: usize = 0x240;
const KEY_SIGNATURE: usize = 0x680;
const AUTHOR_KEY: usize = 0x880;
/// r and s, or qx and qy.
const NUMBERS: usize = 144;
/// The curve's number, in front of a key's numbers.
const CURVE: usize = 4;

/// The ID block with this guest policy.
pub(super) fn to_plan(header: &IGVM_VHS_SNP_ID_BLOCK, policy: u64) -> IdBlock {
    let mut block = Box::new([0; 96]);
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &header.ld);
    put(48, &header.family_id);
    put(64, &header.image_id);
    put(80, &header.version.to_le_bytes());
    put(84, &header.guest_svn.to_le_bytes());
    put(88, &policy.to_le_bytes());
    let mut authentication = Box::new([0; 4096]);
    let mut put =
        |at: usize, bytes: &[u8]| authentication[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &header.id_key_algorithm.to_le_bytes());
    put(4, &header.author_key_algorithm.to_le_bytes());
    for (at, signature) in
        [(BLOCK_SIGNATURE, &header.id_key_signature), (KEY_SIGNATURE, &header.author_key_signature)]
    {
        put(at, &signature.r_comp);
        put(at + NUMBERS / 2, &signature.s_comp);
    }
    for (at, key) in [(ID_KEY, &header.id_public_key), (AUTHOR_KEY, &header.author_public_key)] {
        put(at, &key.curve.to_le_bytes());
        put(at + CURVE, &key.qx);
        put(at + CURVE + NUMBERS / 2, &key.qy);
    }
    IdBlock { block, authentication, author_key: header.author_key_enabled != 0 }
}

/// The header for an ID block; its policy is the file's guest policy.
pub(super) fn to_header(id: &IdBlock, mask: u32) -> IGVM_VHS_SNP_ID_BLOCK {
    let page = &id.authentication;
    let mut header = IGVM_VHS_SNP_ID_BLOCK::new_zeroed();
    header.compatibility_mask = mask;
    header.author_key_enabled = id.author_key.into();
    header.ld = bytes(&id.block[..], 0);
    header.family_id = bytes(&id.block[..], 48);
    header.image_id = bytes(&id.block[..], 64);
    header.version = u32::from_le_bytes(bytes(&id.block[..], 80));
    header.guest_svn = u32::from_le_bytes(bytes(&id.block[..], 84));
    header.id_key_algorithm = u32::from_le_bytes(bytes(&page[..], 0));
    header.author_key_algorithm = u32::from_le_bytes(bytes(&page[..], 4));
    header.id_key_signature = signature(&page[..], BLOCK_SIGNATURE);
    header.id_public_key = key(&page[..], ID_KEY);
    header.author_key_signature = signature(&page[..], KEY_SIGNATURE);
    header.author_public_key = key(&page[..], AUTHOR_KEY);
    header
}

fn signature(page: &[u8], at: usize) -> IGVM_VHS_SNP_ID_BLOCK_SIGNATURE {
    IGVM_VHS_SNP_ID_BLOCK_SIGNATURE {
        r_comp: bytes(page, at),
        s_comp: bytes(page, at + NUMBERS / 2),
    }
}

fn key(page: &[u8], at: usize) -> IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY {
    IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY {
        curve: u32::from_le_bytes(bytes(page, at)),
        reserved: 0,
        qx: bytes(page, at + CURVE),
        qy: bytes(page, at + CURVE + NUMBERS / 2),
    }
}

fn bytes<const N: usize>(page: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| page[at + index])
}
