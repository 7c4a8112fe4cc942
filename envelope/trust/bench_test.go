package trust

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// batch is an entry of n envelopes of 1.4 KiB.
func batch(n int) [][]byte {
	var items [][]byte
	for i := range n {
		items = append(items, fmt.Appendf(nil, `{"id":%d,"payload":"%s"}`, i, bytes.Repeat([]byte("x"), 1400)))
	}
	return items
}

func headOf(items [][]byte) *EntryHead {
	leaves := make([]Hash, len(items))
	for i, it := range items {
		leaves[i] = Leaf(it, MetaHash(nil))
	}
	return &EntryHead{Lane: "openclaw/lanes/a/bobby/", Seq: 4, Count: 10, Items: len(items), Root: Root(leaves)}
}

// perEnvelope reports what one envelope of the entry cost.
func perEnvelope(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/envelope")
}

// BenchmarkSignEntry is hashing all items and one signature.
func BenchmarkSignEntry(b *testing.B) {
	s := &Signer{Mesh: "m", Gateway: "a", Key: keyA}
	for _, n := range []int{1, 32, 340} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			items := batch(n)
			for b.Loop() {
				s.SignEntry(headOf(items), noon)
			}
			perEnvelope(b, n)
		})
	}
}

// BenchmarkVerifyEntry is the receiver's side of it.
func BenchmarkVerifyEntry(b *testing.B) {
	v := exampleVerifier()
	for _, n := range []int{1, 32, 340} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			items := batch(n)
			st := (&Signer{Mesh: "m", Gateway: "a", Key: keyA}).SignEntry(headOf(items), noon)
			for b.Loop() {
				if err := v.Entry(headOf(items), &st, "a"); err != nil {
					b.Fatal(err)
				}
			}
			perEnvelope(b, n)
		})
	}
}

// BenchmarkVerifyParallel is lanes side by side: they share the verifier and wait for nothing.
func BenchmarkVerifyParallel(b *testing.B) {
	v := exampleVerifier()
	h := headOf(batch(32))
	st := (&Signer{Mesh: "m", Gateway: "a", Key: keyA}).SignEntry(h, noon)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if v.Entry(h, &st, "a") != nil {
				b.Fail()
			}
		}
	})
}

// BenchmarkRecord is a record of 1 KiB, signed and read.
func BenchmarkRecord(b *testing.B) {
	v := exampleVerifier()
	s := &Signer{Mesh: "m", Gateway: "a", Key: keyA}
	body := fmt.Appendf(nil, `{"x":"%s"}`, bytes.Repeat([]byte("x"), 1024))
	raw := s.SignRecord(KindReceipts, "place", noon, body)
	b.Run("sign", func(b *testing.B) {
		for b.Loop() {
			s.SignRecord(KindReceipts, "place", noon, body)
		}
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := v.Record(KindReceipts, "place", raw, "a", "jerry"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkProof is checking what another gateway forwarded.
func BenchmarkProof(b *testing.B) {
	v := exampleVerifier()
	items := batch(340)
	leaves := make([]Hash, len(items))
	for i, it := range items {
		leaves[i] = Leaf(it, MetaHash(nil))
	}
	h := headOf(items)
	p := Prove((&Signer{Mesh: "m", Gateway: "a", Key: keyA}).SignEntry(h, noon), h, leaves, 200, MetaHash(nil))
	start := time.Now()
	for b.Loop() {
		if err := v.Proof(p, items[200], "a"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N), "ns/proof")
	b.ReportMetric(float64(len(p.Encode())), "bytes/proof")
}
