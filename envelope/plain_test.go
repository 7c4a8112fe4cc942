package envelope

import (
	"fmt"
	"testing"
)

// Every byte at every place of a word and beyond it, beside good ones.
func TestPlain(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for c := range 256 {
				s := []byte("aZ~ }0!#[]^aZ~ }0!#[")[:n:n]
				s[at] = byte(c)
				want := c >= ' ' && c <= '~' && c != '"' && c != '\\'
				if plain(s) != want || plain(string(s)) != want {
					t.Fatalf("%q: %v, want %v", s, !want, want)
				}
			}
		}
		if !plain(make([]byte, 0)) || !plain(fmt.Sprintf("%*d", n, 1)) {
			t.Fatal("good ones are bad")
		}
	}
}

func BenchmarkPlain(b *testing.B) {
	s := make([]byte, 1024)
	for i := range s {
		s[i] = 'a'
	}
	b.SetBytes(1024)
	for b.Loop() {
		if !plain(s) {
			b.Fatal()
		}
	}
}
