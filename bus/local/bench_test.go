package local

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
)

// shape is roughly what a send costs: a bell of 1 KiB and a check.
func shape(i int64) []bus.Op {
	return []bus.Op{
		{Verb: bus.OpSet, Key: fmt.Sprintf("openclaw/inbox/bobby/from/%d", i%64), Value: fmt.Appendf(make([]byte, 1024), "%d", i)},
		{Verb: bus.OpCheckNotExists, Key: "openclaw/none"},
	}
}

func BenchmarkTxnSerial(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "mesh.db"))
	var i int64
	for b.Loop() {
		i++
		if _, err := s.Txn(b.Context(), shape(i)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTxnParallel(b *testing.B) {
	for _, n := range []int{4, 32} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "mesh.db"))
			var i atomic.Int64
			b.SetParallelism(n)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := s.Txn(b.Context(), shape(i.Add(1))); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkWatchWake is the way from a Txn to the Watch it wakes.
func BenchmarkWatchWake(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "mesh.db"))
	_, index, err := s.Watch(b.Context(), "openclaw/inbox/bobby/", 0)
	if err != nil {
		b.Fatal(err)
	}
	var i int64
	woken := make(chan uint64)
	for b.Loop() {
		i++
		go func() {
			_, next, err := s.Watch(b.Context(), "openclaw/inbox/bobby/", index)
			if err != nil {
				b.Error(err)
			}
			woken <- next
		}()
		if _, err := s.Txn(b.Context(), shape(i)); err != nil {
			b.Fatal(err)
		}
		index = <-woken
	}
}
