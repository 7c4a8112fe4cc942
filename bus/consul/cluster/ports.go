package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

// ports are what one server listens on; everything else of Consul's is off.
type ports struct {
	HTTP   int `json:"http"`
	Server int `json:"server"`
	Serf   int `json:"serf_lan"`
}

// Ports are drawn below the range from which kernels give out ports of outgoing
// connections (32768 on Linux, 49152 elsewhere) and below Nomad's dynamic ports
// (20000): nobody takes one by accident while its server is down.
const (
	portsFrom = 13000
	portsTo   = 20000
)

// reservation holds ports open until just before the servers bind them, so that
// other starts on this machine look elsewhere.
type reservation struct {
	held []interface{ Close() error }
}

func (r *reservation) release() {
	for _, h := range r.held {
		_ = h.Close()
	}
	r.held = nil
}

// reserve finds ports for n servers.
func reserve(n int) (_ []ports, _ *reservation, err error) {
	r := &reservation{}
	defer func() {
		if err != nil {
			r.release()
		}
	}()
	next := func(udp bool) (int, error) {
		for range 2000 {
			port := portsFrom + rand.IntN(portsTo-portsFrom)
			addr := net.JoinHostPort(loopback, strconv.Itoa(port))
			tcp, err := net.Listen("tcp", addr)
			if err != nil {
				continue
			}
			if udp {
				packets, err := net.ListenPacket("udp", addr)
				if err != nil {
					_ = tcp.Close()
					continue
				}
				r.held = append(r.held, packets)
			}
			r.held = append(r.held, tcp)
			return port, nil
		}
		return 0, fmt.Errorf("no free loopback port between %d and %d", portsFrom, portsTo)
	}
	all := make([]ports, n)
	for i := range all {
		for _, p := range []struct {
			to  *int
			udp bool
		}{{&all[i].HTTP, false}, {&all[i].Server, false}, {&all[i].Serf, true}} {
			if *p.to, err = next(p.udp); err != nil {
				return nil, nil, err
			}
		}
	}
	return all, r, nil
}

// portsFile keeps the ports beside the data: Raft's peers are known by address, so
// servers that start again on old data need their old ports.
const portsFile = "ports.json"

// loadPorts returns the ports of the servers whose data lies in dir, nil if none does.
func loadPorts(dir string, n int) ([]ports, error) {
	raw, err := os.ReadFile(filepath.Join(dir, portsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []ports
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, portsFile), err)
	}
	if len(all) != n {
		return nil, fmt.Errorf("%s holds the data of %d servers, not of %d (choose another directory, or remove it)", dir, len(all), n)
	}
	return all, nil
}

func savePorts(dir string, all []ports) error {
	raw, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, portsFile), append(raw, '\n'), 0o600)
}
