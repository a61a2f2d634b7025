//! The order of the source: no circle of imports, neither among files nor among folders.
//!
//! An import counts for the file in which its item is defined, whatever re-exports it came through. What only tests import
//! does not count, nor do calls of methods, which no path names.

use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// A module by its path from the root of its crate, which is empty itself.
type Module = Vec<String>;

/// What is known of one file.
#[derive(Default)]
struct File {
    /// The names that it defines.
    items: BTreeSet<String>,
    /// What a `use` gives another name or the same one here, and the path.
    names: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// The paths that it needs, as written; not those that it only passes on.
    needs: BTreeSet<Vec<String>>,
}

/// The files of a crate.
#[derive(Default)]
struct Source(BTreeMap<Module, File>);

/// Who imports from whom, and an item for which.
type Edges<Node> = BTreeMap<Node, BTreeMap<Node, String>>;

/// Whether something is there for tests alone.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let condition = list.tokens.to_string().replace(' ', "");
        list.path.is_ident("cfg") && (condition == "test" || condition.starts_with("all(test"))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl File {
    fn add_use(&mut self, tree: &UseTree, mut path: Vec<String>, is_passed_on: bool) {
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.add_use(&part.tree, path, is_passed_on);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, path.clone(), is_passed_on);
                }
            }
            UseTree::Glob(_) => {
                if !is_passed_on {
                    self.needs.insert(path.clone());
                }
                self.globs.push(path);
            }
            UseTree::Name(_) | UseTree::Rename(_) => {
                let (item, name) = match tree {
                    UseTree::Rename(both) => (&both.ident, both.rename.to_string()),
                    UseTree::Name(one) => (&one.ident, one.ident.to_string()),
                    _ => return,
                };
                let name = if item == "self" {
                    path.last().cloned().unwrap_or(name)
                } else {
                    name
                };
                if item != "self" {
                    path.push(item.to_string());
                }
                if !is_passed_on {
                    self.needs.insert(path.clone());
                }
                self.names.insert(name, path);
            }
        }
    }

    /// Paths in what is given to a macro.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if path.is_empty() || colons == 2 => {
                    path.push(ident.to_string())
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                    continue;
                }
                other => {
                    self.add_path(std::mem::take(&mut path));
                    match other {
                        TokenTree::Group(group) => self.add_tokens(group.stream()),
                        TokenTree::Ident(ident) => path.push(ident.to_string()),
                        _ => {}
                    }
                }
            }
            colons = 0;
        }
        self.add_path(path);
    }

    fn add_path(&mut self, path: Vec<String>) {
        if path.len() > 1 {
            self.needs.insert(path);
        }
    }
}

impl<'a> Visit<'a> for File {
    fn visit_path(&mut self, path: &'a syn::Path) {
        let names = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        self.add_path(names.collect());
        visit::visit_path(self, path);
    }
    fn visit_macro(&mut self, call: &'a syn::Macro) {
        self.add_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
    fn visit_item(&mut self, item: &'a Item) {
        if is_test(attributes(item)) {
            return;
        }
        if let Item::Use(item) = item {
            let is_passed_on = !matches!(item.vis, syn::Visibility::Inherited);
            self.add_use(&item.tree, Vec::new(), is_passed_on);
        } else {
            visit::visit_item(self, item);
        }
    }
    fn visit_impl_item_fn(&mut self, method: &'a syn::ImplItemFn) {
        if !is_test(&method.attrs) {
            visit::visit_impl_item_fn(self, method);
        }
    }
}

impl Source {
    /// Reads the crate whose root is the file `root`.
    fn read(root: &Path, text: &impl Fn(&Path) -> Option<String>) -> Self {
        let mut source = Self::default();
        let folder = root.parent().unwrap_or(Path::new(""));
        source.read_file(root, folder.to_path_buf(), Vec::new(), text);
        source
    }

    fn read_file(
        &mut self,
        path: &Path,
        folder: PathBuf,
        module: Module,
        text: &impl Fn(&Path) -> Option<String>,
    ) {
        let text_of_file = text(path).unwrap_or_else(|| panic!("{} is not there", path.display()));
        let parsed = syn::parse_file(&text_of_file)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut file = File::default();
        for item in parsed
            .items
            .iter()
            .filter(|item| !is_test(attributes(item)))
        {
            let name = match item {
                Item::Const(item) => &item.ident,
                Item::Enum(item) => &item.ident,
                Item::Fn(item) => &item.sig.ident,
                Item::Static(item) => &item.ident,
                Item::Struct(item) => &item.ident,
                Item::Trait(item) => &item.ident,
                Item::Type(item) => &item.ident,
                Item::Union(item) => &item.ident,
                Item::Macro(item) => match &item.ident {
                    Some(name) => name,
                    None => {
                        file.visit_item_macro(item);
                        continue;
                    }
                },
                Item::Mod(item) if item.content.is_none() => {
                    let name = item.ident.to_string();
                    let mut child = module.clone();
                    child.push(name.clone());
                    let beside = folder.join(format!("{name}.rs"));
                    let below = folder.join(&name);
                    let found = if text(&beside).is_some() {
                        beside
                    } else {
                        below.join("mod.rs")
                    };
                    self.read_file(&found, below, child, text);
                    continue;
                }
                other => {
                    file.visit_item(other);
                    continue;
                }
            };
            file.items.insert(name.to_string());
            file.visit_item(item);
        }
        self.0.insert(module, file);
    }

    /// The file that defines what `path` means in `module`, if that is in this crate.
    fn find(&self, module: &[String], path: &[String], depth: usize) -> Option<Module> {
        // Re-exports may go in a circle, too.
        if depth > 20 {
            return None;
        }
        let mut at = module.to_vec();
        let mut is_first = true;
        for (number, name) in path.iter().enumerate() {
            let file = self.0.get(&at)?;
            let rest = path.get(number + 1..).unwrap_or_default();
            let mut child = at.clone();
            child.push(name.clone());
            match name.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => drop(at.pop()?),
                _ if self.0.contains_key(&child) => at = child,
                _ if file.items.contains(name) => return Some(at),
                _ => {
                    let through = |mut to: Vec<String>| {
                        to.extend_from_slice(rest);
                        self.find(&at, &to, depth + 1)
                    };
                    if let Some(to) = file.names.get(name) {
                        // A crate of this name is meant.
                        return if is_first && to.first() == Some(name) {
                            None
                        } else {
                            through(to.clone())
                        };
                    }
                    let with_name = |glob: &Vec<String>| {
                        let mut to = glob.clone();
                        to.push(name.clone());
                        through(to)
                    };
                    return file.globs.iter().find_map(with_name);
                }
            }
            is_first = false;
        }
        Some(at)
    }

    /// Which file imports from which.
    fn edges(&self) -> Edges<Module> {
        let mut edges = Edges::new();
        for (module, file) in &self.0 {
            for path in &file.needs {
                if let Some(target) = self.find(module, path, 0)
                    && target != *module
                {
                    let from: &mut BTreeMap<_, _> = edges.entry(module.clone()).or_default();
                    from.entry(target).or_insert_with(|| path.join("::"));
                }
            }
        }
        edges
    }

    /// The circles among files, and among what stands side by side in a folder.
    fn circles(&self) -> Vec<String> {
        let files = self.edges();
        let mut found: Vec<_> = circle(&files).into_iter().collect();
        let mut folders: BTreeMap<Module, Edges<Module>> = BTreeMap::new();
        for (from, targets) in &files {
            for (to, item) in targets {
                let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
                if let (Some(a), Some(b)) = (from.get(..=common), to.get(..=common)) {
                    let folder = folders.entry(from[..common].to_vec()).or_default();
                    let targets = folder.entry(a.to_vec()).or_default();
                    let item = format!("{item} in {}", from.join("::"));
                    targets.entry(b.to_vec()).or_insert(item);
                }
            }
        }
        found.extend(folders.values().filter_map(circle));
        found
    }
}

/// A shortest circle, told.
fn circle(edges: &Edges<Module>) -> Option<String> {
    let shortest = edges.keys().filter_map(|start| {
        let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(at) = queue.pop_front() {
            for next in edges.get(at).into_iter().flat_map(BTreeMap::keys) {
                if next == start {
                    let mut way = vec![start, at];
                    while let Some(previous) = before.get(way[way.len() - 1]) {
                        way.push(previous);
                    }
                    way.reverse();
                    return Some(way);
                }
                if !before.contains_key(next) {
                    before.insert(next, at);
                    queue.push_back(next);
                }
            }
        }
        None
    });
    let way = shortest.min_by_key(Vec::len)?;
    let step = |pair: &[&Module]| {
        let item = &edges[pair[0]][pair[1]];
        format!(
            "{} needs {} ({item})",
            pair[0].join("::"),
            pair[1].join("::")
        )
    };
    Some(way.windows(2).map(step).collect::<Vec<_>>().join(", "))
}

fn text_of_file(path: &Path) -> Option<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

#[test]
fn no_circle_of_imports() {
    for root in [
        "src/lib.rs",
        "src/kernel/main.rs",
        "abi/src/lib.rs",
        "guest/src/lib.rs",
        "runner/src/lib.rs",
    ] {
        let source = Source::read(Path::new(root), &text_of_file);
        let circles = source.circles();
        assert!(
            circles.is_empty(),
            "{root}: circles of imports:\n{}",
            circles.join("\n")
        );
    }
}

/// The layers of the library, the lowest first.
const LAYERS: [&str; 7] = ["frames", "paging", "ept", "virt", "vmx", "vm", "host"];

#[test]
fn no_layer_imports_from_above() {
    let source = Source::read(Path::new("src/lib.rs"), &text_of_file);
    let edges = source.edges();
    let layer = |module: &Module| {
        LAYERS
            .iter()
            .position(|layer| module.first().is_some_and(|first| first == layer))
    };
    for (from, targets) in &edges {
        let Some(own) = layer(from) else { continue };
        let wrong: Vec<_> = targets
            .iter()
            .filter(|(to, _)| layer(to) > Some(own))
            .collect();
        assert!(wrong.is_empty(), "{} imports {wrong:?}", from.join("::"));
    }
    let known: BTreeSet<_> = edges
        .values()
        .flat_map(BTreeMap::keys)
        .chain(edges.keys())
        .filter_map(layer)
        .collect();
    assert!(known.len() == LAYERS.len(), "the source was not read");
}

/// The circles in a crate of these files.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let text = |path: &Path| {
        let file = files.iter().find(|(name, _)| Path::new(name) == path);
        file.map(|(_, text)| text.to_string())
    };
    Source::read(Path::new("lib.rs"), &text).circles()
}

#[test]
fn a_planted_circle_is_found() {
    let lib = ("lib.rs", "pub mod a; pub mod b; pub use b::c::C;");
    let b = ("b/mod.rs", "pub mod c; pub mod d;");
    let (c, d) = (
        ("b/c.rs", "pub struct C;"),
        ("b/d.rs", "use super::c::C; fn d(_: C) {}"),
    );
    let a = |text| circles_of(&[lib, b, c, d, ("a.rs", text)]);
    assert_eq!(a("use crate::C;"), [] as [&str; 0]);
    // Through a re-export, in a body, in what a macro is given; among files, and among folders alone.
    for text in [
        "use crate::a::A;",
        "fn c() { crate::a::A; }",
        "fn c() { println!(\"{}\", crate::a::A); }",
        "use crate::*; type T = a::A;",
    ] {
        let c = format!("pub struct C; {text}");
        let found = circles_of(&[
            lib,
            b,
            ("b/c.rs", &c),
            d,
            ("a.rs", "use crate::C; pub struct A;"),
        ]);
        assert_eq!(found.len(), 2, "{text}: {found:?}");
        assert!(
            found[0].starts_with("a needs b::c (crate::C), b::c needs a ("),
            "{found:?}"
        );
    }
    let d = ("b/d.rs", "use crate::a::A;");
    let found = circles_of(&[lib, b, c, d, ("a.rs", "use crate::C; pub struct A;")]);
    assert_eq!(
        found,
        ["a needs b (crate::C in a), b needs a (crate::a::A in b::d)"]
    );
    // Tests may import what they like.
    for text in [
        "#[cfg(test)] use crate::a::A;",
        "#[cfg(test)] mod tests { use crate::a::A; }",
    ] {
        let c = format!("pub struct C; {text}");
        assert!(circles_of(&[lib, b, ("b/c.rs", &c), d, ("a.rs", "pub struct A;")]).is_empty());
    }
}
