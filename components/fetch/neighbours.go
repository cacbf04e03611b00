package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
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
	// One that sent something false may have a bad disk, and be the only one.
	falseFor = 20 * time.Second
	askAgain = 2 * time.Second
	// One is at the other end of a cable; more than one has something in between.
	mostPerPort = 8
	openFlags   = syscall.O_NOCTTY | syscall.O_NONBLOCK
)

type hello struct {
	Number int `json:"number"`
}

// finder knows who is on the cables.
type finder struct {
	lock    sync.Mutex
	sockets map[int]*net.UDPConn // by the port's index
	heard   map[string]time.Time // by address with its port
	avoided map[string]time.Time // until when
	asked   map[string]time.Time
	offers  map[string]*source
	reasons map[string]string
	// Who failed last is taken last: by address, and by port, which stays when that one was not heard for a while.
	failedAt map[string]time.Time
	// Who was said not to prove what it offers.
	unproven map[string]bool
	// When the first neighbour was heard, when one has last sent something of this system, and when it was said that none has it.
	heardAt, helpedAt, toldAt time.Time
}

func newFinder() *finder {
	return &finder{
		sockets: map[int]*net.UDPConn{}, heard: map[string]time.Time{}, avoided: map[string]time.Time{},
		asked: map[string]time.Time{}, offers: map[string]*source{}, reasons: map[string]string{},
		failedAt: map[string]time.Time{}, unproven: map[string]bool{},
		helpedAt: time.Now(), toldAt: time.Now().Add(patience - repeat),
	}
}

// look returns the neighbours that have this root, of the cluster that is pinned if one is: those that never failed by their
// addresses, then the others, whoever failed last at the end.
func (finder *finder) look(root rootHash, pinned *join) []*source {
	finder.listen()
	now := time.Now()
	present, due, found := finder.present(now), []string{}, []*source{}
	for _, address := range present {
		if !now.Before(finder.avoided[address]) && (now.Sub(finder.asked[address]) > askAgain || finder.offers[address] == nil) {
			due = append(due, address)
		}
	}
	finder.renew(due)
	for _, address := range present {
		if finder.offers[address] == nil || time.Now().Before(finder.avoided[address]) {
			continue
		}
		if reason := objection(finder.offers[address], root, pinned); reason != "" {
			finder.reasons[address] = fmt.Sprintf("%s %s", finder.offers[address], reason)
			continue
		}
		delete(finder.reasons, address)
		found = append(found, finder.offers[address])
	}
	finder.order(found)
	return found
}

// keepTo leaves those of other clusters out for as long as the one that is fetched from may help: which cluster it is was shown.
func (finder *finder) keepTo(shown *join, same []*source) []*source {
	kept := slices.DeleteFunc(slices.Clone(same), func(one *source) bool { return isOfAnother(one, shown) })
	if len(kept) == 0 && time.Since(finder.helpedAt) > alone {
		return same
	}
	return kept
}

// renew asks neighbours what they offer, all at once: it takes no longer than the slowest of them.
func (finder *finder) renew(addresses []string) {
	answers, begin := make([]*source, len(addresses)), time.Now()
	var asking sync.WaitGroup
	for place, address := range addresses {
		asking.Go(func() {
			// Nothing where it cannot be asked.
			answers[place], _ = ask(address)
		})
	}
	asking.Wait()
	now := time.Now()
	for place, address := range addresses {
		finder.asked[address] = now
		if answers[place] == nil {
			// Of which cluster it is was said before. One that hangs is not waited for each time.
			finder.avoided[address] = now.Add(max(askAgain, min(avoidFor, now.Sub(begin))))
			continue
		}
		finder.offers[address] = answers[place]
	}
}

// order puts those first that have not failed, or not for long: first by their ports, as one may call itself by another address.
func (finder *finder) order(found []*source) {
	sort.SliceStable(found, func(one, other int) bool {
		first, second := found[one].address, found[other].address
		if compared := finder.failedAt[portOf(first)].Compare(finder.failedAt[portOf(second)]); compared != 0 {
			return compared < 0
		}
		return finder.failedAt[first].Before(finder.failedAt[second])
	})
}

// portOf returns the port of an address.
func portOf(address string) string { return address[strings.Index(address, "%"):] }

// seesOneCluster tells whether all that is offered now is of one cluster.
func (finder *finder) seesOneCluster() bool {
	var first *source
	for _, offered := range finder.offers {
		if first == nil {
			first = offered
		}
		if isOfAnother(offered, &first.join) {
			return false
		}
	}
	return true
}

// objection says why nothing is taken from a neighbour.
func objection(offered *source, root rootHash, pinned *join) string {
	if isOfAnother(offered, pinned) {
		return "is of another cluster, " + offered.cluster()
	}
	if offered.offer.RootHash != root.text {
		return "has another system, version " + printable(offered.offer.Version)
	}
	if _, err := offered.proven(); err != nil {
		return err.Error()
	}
	return ""
}

// isOfAnother tells whether a neighbour is of another cluster than the one that is wanted, if one is.
func isOfAnother(offered *source, wanted *join) bool {
	if wanted == nil {
		return false
	}
	return wanted.Name != offered.join.Name || strings.TrimSpace(wanted.Authority) != strings.TrimSpace(offered.join.Authority)
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

// complain says now and then that nobody has this system.
func (finder *finder) complain(root rootHash, same []*source) {
	if len(same) == 0 && time.Since(finder.toldAt) > repeat {
		finder.toldAt = time.Now()
		say("looking for a neighbour that has this system (%.12s…)%s", root.text, finder.refused())
	}
}

// failed says why nothing more comes from a neighbour.
func (finder *finder) failed(bad *source, err error) {
	say("%s: %v", bad, err)
	finder.avoid(bad, errors.Is(err, errFalse))
}

// avoid asks others first for a while, longer after something false.
func (finder *finder) avoid(bad *source, sentFalse bool) {
	now := time.Now()
	finder.failedAt[bad.address], finder.failedAt[portOf(bad.address)] = now, now
	finder.avoided[bad.address] = now.Add(avoidFor)
	if sentFalse {
		finder.avoided[bad.address] = now.Add(falseFor)
		finder.reasons[bad.address] = fmt.Sprintf("%s sent something false", bad)
	}
}

func (finder *finder) present(now time.Time) []string {
	finder.lock.Lock()
	defer finder.lock.Unlock()
	found := []string{}
	for address, at := range finder.heard {
		if now.Sub(at) < forget {
			found = append(found, address)
			continue
		}
		delete(finder.heard, address)
		delete(finder.avoided, address)
		delete(finder.asked, address)
		delete(finder.offers, address)
		delete(finder.reasons, address)
		delete(finder.failedAt, address)
		delete(finder.unproven, address)
	}
	if len(found) == 0 {
		// The next one that is heard is the first one again.
		finder.heardAt, finder.helpedAt = time.Time{}, now
	}
	sort.Strings(found)
	return found
}

// listen brings every port up, and hears who is on its cable.
func (finder *finder) listen() {
	for _, device := range ports() {
		if finder.sockets[device.Index] != nil || setUp(device.Name) != nil {
			continue
		}
		socket, err := net.ListenMulticastUDP("udp6", &device, &net.UDPAddr{IP: net.ParseIP(helloGroup), Port: helloPort})
		if err != nil {
			continue
		}
		finder.sockets[device.Index] = socket
		go finder.hear(socket, device.Name)
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
		finder.note(from.IP.String(), name)
	}
}

func (finder *finder) note(address, name string) {
	finder.lock.Lock()
	defer finder.lock.Unlock()
	address += "%" + name
	others := 0
	for other := range finder.heard {
		if strings.HasSuffix(other, "%"+name) && other != address {
			others++
		}
	}
	if others < mostPerPort {
		finder.heard[address] = time.Now()
	}
	if finder.heardAt.IsZero() {
		finder.heardAt = time.Now()
	}
}

// settled tells whether all neighbours had the time to be heard.
func (finder *finder) settled() bool {
	finder.lock.Lock()
	defer finder.lock.Unlock()
	return !finder.heardAt.IsZero() && time.Since(finder.heardAt) > settle
}

func (finder *finder) close() {
	for _, socket := range finder.sockets {
		socket.Close()
	}
}

// ports returns the network cards: nothing else is there yet but the loopback.
func ports() []net.Interface {
	found := []net.Interface{}
	devices, _ := net.Interfaces()
	for _, device := range devices {
		if device.Flags&net.FlagLoopback == 0 && len(device.HardwareAddr) == 6 {
			found = append(found, device)
		}
	}
	return found
}

// setUp brings a port up (netdevice(7), SIOCSIFFLAGS). There is nobody else on a cable who has our address.
func setUp(name string) error {
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
	request.flags |= syscall.IFF_UP
	return control(syscall.SIOCSIFFLAGS)
}
