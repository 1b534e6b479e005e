//! Every algorithm once, over the lane layer. No instruction and no `unsafe` here.

pub(crate) mod attention;
pub(crate) mod dot;
pub(crate) mod elementwise;
pub(crate) mod exp;
pub(crate) mod float_matmul;
pub(crate) mod int8_matmul;
pub(crate) mod kv_write;
pub(crate) mod logits;
pub(crate) mod row_groups;
pub(crate) mod span_matmul;
pub(crate) mod tile_attention;
pub(crate) mod tile_matmul;
