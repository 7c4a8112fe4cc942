package main

import (
	"crypto/rand"
	"encoding/base64"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gatemesh/gatemesh/envelope"
)

// benchPayload is the size of every measured message's text, in bytes.
const benchPayload = 1024

// benchKinds are the texts that can be measured with. Entries are packed, so what a message says counts:
//
//   - random: base64 of random bytes, which has no pattern in it, so that packing gains on it what it must gain on anything.
//   - prose: sentences of a made-up language, whose words come as often as those of people's texts do (Zipf's law), so that
//     packing gains about what it gains on English, rather less.
var benchKinds = map[string]func() func() string{
	"random": func() func() string {
		return func() string {
			raw := make([]byte, benchPayload/4*3)
			_, _ = rand.Read(raw) // never fails
			return base64.StdEncoding.EncodeToString(raw)
		}
	},
	"prose": benchProse,
}

// benchTexts is a run's payloads, each text different from all others that may be in the same entry.
type benchTexts struct {
	texts [][]byte
	next  atomic.Uint64
}

var benchTextsOf = func() map[string]func() *benchTexts {
	m := map[string]func() *benchTexts{}
	for kind, start := range benchKinds {
		m[kind] = sync.OnceValue(func() *benchTexts {
			text, t := start(), &benchTexts{texts: make([][]byte, 4096)}
			for i := range t.texts {
				t.texts[i] = envelope.TextPayload(text())
			}
			return t
		})
	}
	return m
}()

func (t *benchTexts) take() []byte { return t.texts[t.next.Add(1)%uint64(len(t.texts))] }

// benchProse returns what makes texts of exactly benchPayload bytes.
func benchProse() func() string {
	const vocabulary, commonest = 20000, 2
	r := mathrand.New(mathrand.NewPCG(1, 2)) // the same language in every run
	syllables := strings.Fields("a al an ar be co con de di en er es est ex fi for gra he in is it la le li lo ma me mi na ne no o on or " +
		"pa pe po pre pro ra re ri ro sa se si so sta te ter ti to tra u un ve vi vo")
	words := make([]string, vocabulary)
	for i := range words {
		n := 1 // frequent words are short
		for limit := 60; i > limit && n < 5; limit *= 8 {
			n++
		}
		for range n {
			words[i] += syllables[r.IntN(len(syllables))]
		}
	}
	zipf := mathrand.NewZipf(r, 1.07, commonest, vocabulary-1)
	return func() string {
		var b strings.Builder
		for left := 0; b.Len() < benchPayload; left-- {
			word := words[zipf.Uint64()]
			switch {
			case b.Len() == 0:
			case left <= 0:
				b.WriteString(". ")
			default:
				b.WriteByte(' ')
			}
			if left <= 0 {
				left = 6 + r.IntN(16)
				word = strings.ToUpper(word[:1]) + word[1:]
			}
			b.WriteString(word)
		}
		return b.String()[:benchPayload]
	}
}
