//! Joining neighbouring leaves that say the same.

use super::error::PagingError;
use super::format::{Content, Mapping};
use crate::addr::Address;

/// Leaves that lie one behind the other, in virtual and in physical memory, and have the same attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<V, P, A> {
    /// The first address that is translated.
    pub virt: V,
    /// Bytes from there on.
    pub len: u64,
    /// What the first one leads to.
    pub content: Content<P, A>,
}

/// See [`RunsExt::runs`].
pub struct Runs<I: Iterator> {
    leaves: I,
    /// What was read beyond the last run.
    next: Option<I::Item>,
}

type Item<V, P, A> = Result<Mapping<V, P, A>, PagingError<V, P>>;

/// Joins what [`translate`](super::translate) yields.
pub trait RunsExt<V, P, A>: Iterator<Item = Item<V, P, A>> + Sized {
    /// The same translations in as few pieces as possible.
    fn runs(self) -> Runs<Self> {
        Runs {
            leaves: self,
            next: None,
        }
    }
}

impl<V, P, A, I: Iterator<Item = Item<V, P, A>>> RunsExt<V, P, A> for I {}

impl<V: Address, P: Address, A: Copy + Eq, I: Iterator<Item = Item<V, P, A>>> Iterator for Runs<I> {
    type Item = Result<Run<V, P, A>, PagingError<V, P>>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = match self.next.take().or_else(|| self.leaves.next())? {
            Ok(leaf) => leaf,
            Err(error) => return Some(Err(error)),
        };
        let same = |a, b| (a == b).then_some(a);
        let mut len = first.size.bytes();
        for leaf in self.leaves.by_ref() {
            match leaf {
                Ok(leaf)
                    if first.virt.checked_add(len) == Some(leaf.virt)
                        && first.content.joined(leaf.content, len, same).is_some() =>
                {
                    len += leaf.size.bytes();
                }
                other => {
                    self.next = Some(other);
                    break;
                }
            }
        }
        Some(Ok(Run {
            virt: first.virt,
            len,
            content: first.content,
        }))
    }
}
