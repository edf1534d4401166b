"""The viewer: what its page is told of a cohort and its slides, as pure functions, and the page itself."""
