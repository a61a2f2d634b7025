//! A queue of things, each of which holds the one below it.

/// A thing with a place for another.
pub trait Linked: Sized {
    /// The place.
    fn below(&mut self) -> &mut Option<Self>;
    /// What is in it.
    fn look_below(&self) -> Option<&Self>;
}

/// A pile: the last to come is the first to go.
#[derive(Debug)]
struct Pile<T>(Option<T>);

impl<T: Linked> Pile<T> {
    fn push(&mut self, mut thing: T) {
        *thing.below() = self.0.take();
        self.0 = Some(thing);
    }
    fn iter(&self) -> impl Iterator<Item = &T> {
        core::iter::successors(self.0.as_ref(), |thing| thing.look_below())
    }
    fn pop(&mut self) -> Option<T> {
        let mut thing = self.0.take()?;
        self.0 = thing.below().take();
        Some(thing)
    }
}

/// A queue. It needs no memory but what the things themselves bring: they come on one pile and go from another, onto
/// which the first is turned over whenever that is empty.
#[derive(Debug)]
pub struct Queue<T> {
    come: Pile<T>,
    go: Pile<T>,
    len: u64,
}

impl<T: Linked> Queue<T> {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            come: Pile(None),
            go: Pile(None),
            len: 0,
        }
    }

    /// How many there are.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of them, in no order that matters.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.come.iter().chain(self.go.iter())
    }

    /// Puts a thing at the end.
    pub fn push(&mut self, thing: T) {
        self.come.push(thing);
        self.len += 1;
    }

    /// Takes the first thing.
    pub fn pop(&mut self) -> Option<T> {
        if self.go.0.is_none() {
            while let Some(thing) = self.come.pop() {
                self.go.push(thing);
            }
        }
        let thing = self.go.pop()?;
        self.len -= 1;
        Some(thing)
    }
}

impl<T: Linked> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    struct Thing(u32, Option<Box<Thing>>);
    impl Linked for Box<Thing> {
        fn below(&mut self) -> &mut Option<Self> {
            &mut self.1
        }
        fn look_below(&self) -> Option<&Self> {
            self.1.as_ref()
        }
    }

    proptest! {
        #[test]
        fn the_first_comes_first(steps in prop::collection::vec(any::<Option<u32>>(), 0..60)) {
            let (mut queue, mut model) = (Queue::default(), VecDeque::new());
            for step in steps {
                match step {
                    Some(n) => {
                        queue.push(Box::new(Thing(n, None)));
                        model.push_back(n);
                    }
                    None => {
                        let thing = queue.pop();
                        prop_assert!(thing.iter().all(|thing| thing.1.is_none()));
                        prop_assert_eq!(thing.map(|thing| thing.0), model.pop_front());
                    }
                }
                let sum = |sum: u64, n: &u32| sum + u64::from(*n);
                let all = queue.iter().map(|thing| &thing.0).fold(0, sum);
                prop_assert_eq!(all, model.iter().fold(0, sum));
                prop_assert_eq!((queue.len(), queue.is_empty()), (model.len() as u64, model.is_empty()));
            }
        }
    }
}
