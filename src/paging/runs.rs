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
        let mut len = first.size.bytes();
        for leaf in self.leaves.by_ref() {
            match leaf {
                Ok(leaf)
                    if first.virt.checked_add(len) == Some(leaf.virt)
                        && is_behind(first.content, leaf.content, len) =>
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

/// Whether `next` is what stands `len` bytes behind the beginning of `first`.
fn is_behind<P: Address, A: Eq>(first: Content<P, A>, next: Content<P, A>, len: u64) -> bool {
    match (first, next) {
        (Content::Page { phys, attr }, Content::Page { phys: p, attr: a }) => {
            phys.checked_add(len) == Some(p) && attr == a
        }
        (Content::ZeroOnDemand { attr }, Content::ZeroOnDemand { attr: a }) => attr == a,
        _ => false,
    }
}
