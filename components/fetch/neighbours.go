package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	// Every node says hello on every port once a second (agent/kmagent/hello.py).
	helloPort  = 9441
	helloGroup = "ff12::6b6d"
	forget     = 15 * time.Second
	avoidFor   = 10 * time.Second
	askAgain   = 2 * time.Second
	openFlags  = syscall.O_NOCTTY | syscall.O_NONBLOCK
)

type hello struct {
	Number int `json:"number"`
}

// finder knows who is on the cables.
type finder struct {
	lock    sync.Mutex
	sockets map[string]*net.UDPConn
	heard   map[string]time.Time // by address with its port
	avoided map[string]time.Time // until when
	asked   map[string]time.Time
	offers  map[string]*source
	reasons map[string]string
}

func newFinder() *finder {
	return &finder{
		sockets: map[string]*net.UDPConn{}, heard: map[string]time.Time{}, avoided: map[string]time.Time{},
		asked: map[string]time.Time{}, offers: map[string]*source{}, reasons: map[string]string{},
	}
}

// look returns the neighbours that have this root, of the cluster that is pinned if one is; the ones heard best come first.
func (finder *finder) look(root rootHash, pinned *join) []*source {
	finder.listen()
	now := time.Now()
	found := []*source{}
	for _, address := range finder.present(now) {
		if now.Before(finder.avoided[address]) {
			continue
		}
		if now.Sub(finder.asked[address]) > askAgain || finder.offers[address] == nil {
			finder.asked[address] = now
			offered, err := ask(address)
			finder.offers[address] = offered
			if err != nil {
				finder.avoided[address] = now.Add(askAgain)
				continue
			}
		}
		if reason := objection(finder.offers[address], root, pinned); reason != "" {
			finder.reasons[address] = fmt.Sprintf("%s %s", finder.offers[address], reason)
			continue
		}
		delete(finder.reasons, address)
		found = append(found, finder.offers[address])
	}
	return found
}

// objection says why nothing is taken from a neighbour.
func objection(offered *source, root rootHash, pinned *join) string {
	if pinned != nil && (pinned.Name != offered.join.Name || strings.TrimSpace(pinned.Authority) != strings.TrimSpace(offered.join.Authority)) {
		return "is of another cluster, " + offered.cluster()
	}
	if offered.offer.RootHash != root.text {
		return "has another system, version " + printable(offered.offer.Version)
	}
	return ""
}

// refused says in words who was found and why that does not help.
func (finder *finder) refused() string {
	reasons := []string{}
	for _, reason := range finder.reasons {
		reasons = append(reasons, reason)
	}
	sort.Strings(reasons)
	if len(reasons) == 0 {
		return ""
	}
	return ": " + strings.Join(reasons, "; ")
}

// avoid asks others first for a while; one that sent something false is not asked any more.
func (finder *finder) avoid(bad *source, forGood bool) {
	until := time.Now().Add(avoidFor)
	if forGood {
		until = time.Now().Add(24 * time.Hour)
		finder.reasons[bad.address] = fmt.Sprintf("%s sent something false", bad)
	}
	finder.avoided[bad.address] = until
}

func (finder *finder) present(now time.Time) []string {
	finder.lock.Lock()
	defer finder.lock.Unlock()
	found := []string{}
	for address, at := range finder.heard {
		if now.Sub(at) < forget {
			found = append(found, address)
		}
	}
	sort.Strings(found)
	return found
}

// listen brings every port up, and hears who is on its cable.
func (finder *finder) listen() {
	for _, name := range ports() {
		if finder.sockets[name] != nil {
			continue
		}
		if setUp(name, true) != nil {
			continue
		}
		device, err := net.InterfaceByName(name)
		if err != nil {
			continue
		}
		socket, err := net.ListenMulticastUDP("udp6", device, &net.UDPAddr{IP: net.ParseIP(helloGroup), Port: helloPort})
		if err != nil {
			continue
		}
		finder.sockets[name] = socket
		go finder.hear(socket, name)
	}
}

func (finder *finder) hear(socket *net.UDPConn, name string) {
	buffer := make([]byte, 2048)
	for {
		count, from, err := socket.ReadFromUDP(buffer)
		if err != nil {
			return
		}
		line, _, _ := bytes.Cut(buffer[:count], []byte("\n"))
		said := hello{}
		// Several sockets have the same port: each hears all of them.
		if from.Zone != name || json.Unmarshal(line, &said) != nil || said.Number == 0 {
			continue
		}
		finder.lock.Lock()
		finder.heard[from.IP.String()+"%"+from.Zone] = time.Now()
		finder.lock.Unlock()
	}
}

func (finder *finder) close() {
	for _, socket := range finder.sockets {
		socket.Close()
	}
}

// ports returns the names of the network cards; in a container, where cards have no device, of its cables.
func ports() []string {
	found := []string{}
	paths, _ := filepath.Glob("/sys/class/net/*")
	for _, path := range paths {
		name := filepath.Base(path)
		if exists(filepath.Join(path, "device")) || strings.HasPrefix(name, "eth") {
			found = append(found, name)
		}
	}
	return found
}

// setUp brings a port up or down (netdevice(7), SIOCSIFFLAGS). There is nobody else on a cable who has our address.
func setUp(name string, up bool) error {
	for _, setting := range []string{"accept_dad", "accept_ra", "autoconf"} {
		_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, setting), []byte("0"), 0o644)
	}
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(socket)
	var request struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:syscall.IFNAMSIZ-1], name)
	control := func(what uintptr) error {
		if _, _, failed := syscall.Syscall(syscall.SYS_IOCTL, uintptr(socket), what, uintptr(unsafe.Pointer(&request))); failed != 0 {
			return failed
		}
		return nil
	}
	if err := control(syscall.SIOCGIFFLAGS); err != nil {
		return err
	}
	request.flags &^= syscall.IFF_UP
	if up {
		request.flags |= syscall.IFF_UP
	}
	return control(syscall.SIOCSIFFLAGS)
}
