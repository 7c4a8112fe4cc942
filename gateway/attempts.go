package gateway

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxAddresses bounds the addresses that are remembered. With more of them at the same time each is forgotten, and
// so forgiven, sooner; what that many guess together is no more than the network carries.
const maxAddresses = 4096

// tries is how often an address may be refused.
type tries struct {
	most           int
	window         time.Duration
	exemptLoopback bool
}

// attempts counts refused requests by address: a bucket of tries.most, which fills again in tries.window. It
// outlives reloads. The zero value is ready.
type attempts struct {
	mu sync.Mutex
	of map[netip.Prefix]*rate.Limiter
}

// judge asks right, one request at a time, whether one of this address is to be let in. A no costs one try. When
// none is left it does not ask, and answers how long until there is one; else 0.
func (a *attempts) judge(t tries, remote string, now time.Time, right func() bool) time.Duration {
	ip, addr := network(remote)
	if t.exemptLoopback && ip.IsLoopback() {
		right()
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.of[addr]
	every := t.window / time.Duration(max(1, t.most))
	if l != nil {
		if l.Burst() != t.most || l.Limit() != rate.Every(every) { // a reload
			l.SetLimitAt(now, rate.Every(every))
			l.SetBurstAt(now, t.most)
		}
		if left := l.TokensAt(now); left < 1 {
			return max(time.Millisecond, time.Duration((1-left)*float64(every)))
		}
	}
	if right() {
		return 0
	}
	if l == nil {
		l = rate.NewLimiter(rate.Every(every), t.most)
		a.rememberLocked(addr, now, l)
	}
	l.AllowN(now, 1)
	return 0
}

// rememberLocked adds an address. When there are too many, of some that the map happens to show first, the one with
// the most tries left goes: looking at all would make a flood of addresses expensive.
func (a *attempts) rememberLocked(addr netip.Prefix, now time.Time, l *rate.Limiter) {
	if a.of == nil {
		a.of = map[netip.Prefix]*rate.Limiter{}
	}
	if len(a.of) >= maxAddresses {
		const look = 8
		var gone netip.Prefix
		left, seen := -1.0, 0
		for p, old := range a.of {
			if n := old.TokensAt(now); n > left {
				gone, left = p, n
			}
			if seen++; seen == look {
				break
			}
		}
		delete(a.of, gone)
	}
	a.of[addr] = l
}

// network is what one caller has: an IPv4 address, or the /64 that IPv6 gives to everybody. What is no address is
// one caller.
func network(remote string) (netip.Addr, netip.Prefix) {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}, netip.Prefix{}
	}
	ip := ap.Addr().Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return ip, p
}
