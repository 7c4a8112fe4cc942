package cluster

import (
	"testing"
)

// ForTest starts servers for one test and ends them with it. Without a Consul
// binary the test fails, naming the remedy: a skipped test proves nothing. When
// the test fails, the ends of the servers' logs are printed.
func ForTest(t testing.TB, servers int) *Cluster {
	t.Helper()
	return ForTestWith(t, Options{Servers: servers})
}

// ForTestWith is [ForTest] with all options.
func ForTestWith(t testing.TB, opt Options) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for i := range c.servers {
				t.Logf("%s, last lines:\n%s", c.servers[i].name, c.tail(i))
			}
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// CableForTest is [NewCable], closed at the end of the test.
func CableForTest(t testing.TB, servers ...string) *Cable {
	t.Helper()
	c, err := NewCable(servers...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
