//! A small XML document in memory. Entities are not expanded, and there is a bound on everything.

use quick_xml::{
    Reader, XmlVersion,
    events::{BytesStart, Event},
};

use crate::model::{Rule, Violation};

/// Length of a descriptor in bytes. Those of appliances with dozens of disks and networks have some 100 KiB.
pub(super) const MAX_LENGTH: u64 = 1 << 20;
/// Elements inside of elements. A descriptor has about ten.
const MAX_DEPTH: usize = 32;
/// Elements in all, so that a text of empty ones does not take a hundred times its own memory.
const MAX_ELEMENTS: usize = 20_000;
/// Attributes of one element.
const MAX_ATTRIBUTES: usize = 64;

/// An element. Names are local: descriptors of one meaning differ in the prefixes and versions of their namespaces.
#[derive(Debug, Default)]
pub(super) struct Element {
    pub name: String,
    attributes: Vec<(String, String)>,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The children of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The first child of this name.
    pub fn first(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the first child of this name, if there is some.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.first(name).map(|child| child.text.trim()).filter(|text| !text.is_empty())
    }

    /// The first element of this name at any depth, this one included.
    pub fn find(&self, name: &str) -> Option<&Self> {
        if self.name == name { Some(self) } else { self.children.iter().find_map(|child| child.find(name)) }
    }
}

/// Reads a document, which messages call `what`.
///
/// # Errors
/// A violation if it is none, has a DTD or entities of its own, or is past a bound.
pub(super) fn parse(bytes: &[u8], what: &'static str) -> Result<Element, Violation> {
    read(bytes).map_err(|(place, why)| {
        Violation::new(Rule::InvalidField, what, place, format!("the {what} cannot be read: {why}"))
    })
}

/// Where a document is broken, and how.
type Fault = (String, String);

fn read(bytes: &[u8]) -> Result<Element, Fault> {
    let text =
        std::str::from_utf8(bytes).map_err(|e| broken(&format!("byte {}", e.valid_up_to()), "it is not UTF-8"))?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut open: Vec<Element> = vec![Element::default()];
    let mut count = 0_usize;
    loop {
        let place = format!("byte {}", reader.buffer_position());
        let event = reader.read_event().map_err(|e| broken(&place, &e.to_string()))?;
        if matches!(event, Event::Start(_) | Event::Empty(_)) {
            count = count.saturating_add(1);
        }
        if count > MAX_ELEMENTS || open.len() > MAX_DEPTH {
            return Err(broken(&place, "it has more elements, or more inside of one another, than any descriptor"));
        }
        match event {
            Event::Start(start) => open.push(element(&start, &place)?),
            Event::Empty(start) => {
                let element = element(&start, &place)?;
                add(&mut open, element);
            }
            Event::End(_) => {
                let element = open.pop().unwrap_or_default();
                add(&mut open, element);
            }
            Event::Text(text) => add_text(&mut open, &text.xml10_content()),
            Event::CData(text) => add_text(&mut open, &text.xml10_content()),
            Event::GeneralRef(reference) => add_text(&mut open, &resolve(&reference.into_inner(), &place)?),
            Event::DocType(_) => return Err(broken(&place, "it has a DTD, which is not read")),
            Event::Eof => break,
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
    match (open.len(), open.pop().and_then(|mut document| document.children.pop())) {
        (1, Some(root)) => Ok(root),
        _ => Err(broken("its end", "an element is not closed, or there is none")),
    }
}

fn add(open: &mut [Element], element: Element) {
    if let Some(parent) = open.last_mut() {
        parent.children.push(element);
    }
}

fn add_text(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

/// What `&name;` stands for, if it is one of those that every document has.
fn resolve(name: &str, place: &str) -> Result<String, Fault> {
    let text = quick_xml::escape::unescape(&format!("&{name};")).map(std::borrow::Cow::into_owned);
    text.map_err(|_| broken(place, "it uses an entity of its own, which is not expanded"))
}

fn element(start: &BytesStart<'_>, place: &str) -> Result<Element, Fault> {
    let mut attributes: Vec<(String, String)> = Vec::new();
    // The reader's own check for duplicates takes quadratic time.
    for attribute in start.attributes().with_checks(false) {
        let attribute = attribute.map_err(|e| broken(place, &e.to_string()))?;
        let name = attribute.key.local_name().as_ref().to_owned();
        let value = attribute.normalized_value(XmlVersion::Explicit1_0).map_err(|e| broken(place, &e.to_string()))?;
        attributes.push((name, value.into_owned()));
        if attributes.len() > MAX_ATTRIBUTES {
            return Err(broken(place, "an element has more attributes than any descriptor's"));
        }
    }
    let name = start.local_name().as_ref().to_owned();
    Ok(Element { name, attributes, ..Element::default() })
}

fn broken(place: &str, why: &str) -> Fault {
    (place.to_owned(), why.to_owned())
}
