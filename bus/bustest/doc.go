// Package bustest holds the suite that every [bus.Store] passes, and a wrapper that
// makes a store fail on purpose. Only tests may import it.
package bustest
