//! What is written at once.

/// Writes that take effect together, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteBatch {
    ops: Vec<WriteOp>,
    size_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WriteOp {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    /// The keys from the first on, before the second.
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl WriteBatch {
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), value.into());
        self.size_bytes += key.len() + value.len();
        self.ops.push(WriteOp::Put(key, value));
    }

    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        let key = key.into();
        self.size_bytes += key.len();
        self.ops.push(WriteOp::Delete(key));
    }

    pub fn delete_range(&mut self, from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) {
        let (from, to) = (from.into(), to.into());
        self.size_bytes += from.len() + to.len();
        self.ops.push(WriteOp::DeleteRange(from, to));
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    pub fn into_ops(self) -> Vec<WriteOp> {
        self.ops
    }
}
