//! What the verifier sees of a request head.

use meshring_core::table::lookup::RequestView;

use super::TokenView;
use crate::route::Request;

impl TokenView for Request<'_> {
    fn method(&self) -> &[u8] {
        RequestView::method(self)
    }

    fn scheme(&self) -> &[u8] {
        RequestView::scheme(self)
    }

    fn authority(&self) -> &[u8] {
        RequestView::authority(self)
    }

    fn path(&self) -> &[u8] {
        self.path
    }

    fn query(&self) -> Option<&[u8]> {
        RequestView::query(self)
    }

    fn header_lines<'v>(&'v self, name: &str, each: &mut dyn FnMut(&'v [u8])) {
        let named = self.fields.iter().filter(|field| field.name.of(self.bytes).eq_ignore_ascii_case(name.as_bytes()));
        named.for_each(|field| each(field.value.of(self.bytes)));
    }
}
