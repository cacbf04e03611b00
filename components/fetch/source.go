package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"
)

const (
	port         = "9445"
	maxOffer     = 64 << 10
	maxHashes    = 64 << 20
	maxBootImage = 256 << 20
	// How long a neighbour may take for this much: one that is slower is no better than one that is dead.
	stallAfter = 10 * time.Second
	stallBytes = 1 << 20
)

// offer is what a node says of the system that it runs (docs/provisioning.md). `Join` is the credential `kubermesh.join`.
type offer struct {
	Node      string          `json:"node"`
	Version   string          `json:"version"`
	RootHash  string          `json:"roothash"`
	RootBytes int64           `json:"root_bytes"`
	HashBytes int64           `json:"hash_bytes"`
	Join      json.RawMessage `json:"join"`
	// What the node has signed: the text, and by which certificate (PEM) of the cluster's.
	Statement   string `json:"statement"`
	Signature   string `json:"signature"`
	Certificate string `json:"certificate"`
}

type join struct {
	Name      string `json:"name"`
	Authority string `json:"authority"`
}

// source is a neighbour that offers something.
type source struct {
	address string // with its port: fe80::…%eth0
	offer   offer
	join    join
	nonce   string
}

var client = &http.Client{
	Transport: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		ResponseHeaderTimeout: stallAfter,
		DisableKeepAlives:     true,
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// What the running system takes for a cluster's name (agent/kmplan/cluster.py).
var clusterName = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$`)

// ask returns what a neighbour offers.
func ask(address string) (*source, error) {
	found := &source{address: address, nonce: rand.Text()}
	text, err := found.read("/v1/offer?nonce="+found.nonce, -maxOffer)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &found.offer); err != nil {
		return nil, errors.New("an offer that cannot be read")
	}
	if err := json.Unmarshal(found.offer.Join, &found.join); err != nil || !clusterName.MatchString(found.join.Name) {
		return nil, errors.New("an offer without a cluster")
	}
	if certificate, _ := pem.Decode([]byte(found.join.Authority)); certificate == nil {
		return nil, errors.New("an offer without a certificate")
	}
	if found.offer.HashBytes <= 0 || found.offer.HashBytes > maxHashes || found.offer.RootBytes <= 0 {
		return nil, errors.New("an offer of an impossible size")
	}
	return found, nil
}

func (from *source) String() string {
	zone := from.address[strings.Index(from.address, "%")+1:]
	return fmt.Sprintf("%s on %s", printable(from.offer.Node), zone)
}

// byIndex is the address with its port's number: the running system may give the port another name.
func (from *source) byIndex() string {
	address, zone, _ := strings.Cut(from.address, "%")
	device, err := net.InterfaceByName(zone)
	if err != nil {
		return from.address
	}
	return fmt.Sprintf("%s%%%d", address, device.Index)
}

func (from *source) cluster() string { return printable(from.join.Name) }

// fingerprint is the SHA-256 of the certificate of the cluster's node authority, of which 128 bits are shown.
func (from *source) fingerprint() string {
	found, _ := pem.Decode([]byte(from.join.Authority))
	if found == nil {
		return "none"
	}
	sum := sha256.Sum256(found.Bytes)
	text := hex.EncodeToString(sum[:16])
	groups := []string{}
	for at := 0; at < len(text); at += 4 {
		groups = append(groups, text[at:at+4])
	}
	return strings.Join(groups, " ")
}

// printable keeps what a stranger sends from moving a cursor.
func printable(text string) string {
	kept := strings.Map(func(one rune) rune {
		if one < 0x20 || one > 0x7e {
			return '?'
		}
		return one
	}, text)
	return kept[:min(len(kept), 64)]
}

// read returns all of something: `size` bytes, or with a negative size at most as many.
func (from *source) read(path string, size int64) ([]byte, error) {
	stream, err := from.open(path, 0, max(size, -1))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	if size >= 0 {
		data := make([]byte, size)
		_, err := io.ReadFull(stream, data)
		return data, err
	}
	data, err := io.ReadAll(io.LimitReader(stream, 1-size))
	if err == nil && int64(len(data)) > -size {
		err = errors.New("too many bytes")
	}
	return data, err
}

// open begins to read from `start` up to `end` (not with it), or everything with a negative `end`. A neighbour that sends
// nothing for a while ends it.
func (from *source) open(path string, start, end int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(context.Background())
	host := strings.Replace(from.address, "%", "%25", 1)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://["+host+"]:"+port+path, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	wanted := http.StatusOK
	if end >= 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", start, end-1))
		wanted = http.StatusPartialContent
	}
	answer, err := client.Do(request)
	if err == nil && answer.StatusCode != wanted {
		answer.Body.Close()
		err = fmt.Errorf("%s: status %d", path, answer.StatusCode)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &watched{answer.Body, cancel, time.AfterFunc(stallAfter, cancel), 0}, nil
}

// copyBootImage takes the boot image that belongs to the root, which has its digest: with it the disk boots that is installed, and
// neighbours without a system.
func (from *source) copyBootImage(root rootHash, digest, path string) error {
	data, err := from.read("/kubermesh.efi", -maxBootImage)
	if err != nil {
		return err
	}
	if bootImageDigest(data, root) != digest {
		return fmt.Errorf("its boot image is another one's: %w", errFalse)
	}
	return os.WriteFile(path, data, 0o644)
}

// bootImageDigest is the SHA-256 of a boot image, in hex, with zeros in the place of its root hash.
func bootImageDigest(data []byte, root rootHash) string {
	nothing := []byte("roothash=" + strings.Repeat("0", len(root.text)))
	sum := sha256.Sum256(bytes.ReplaceAll(data, []byte("roothash="+root.text), nothing))
	return hex.EncodeToString(sum[:])
}

type watched struct {
	io.ReadCloser
	cancel context.CancelFunc
	timer  *time.Timer
	since  int
}

func (stream *watched) Read(data []byte) (int, error) {
	count, err := stream.ReadCloser.Read(data)
	if stream.since += count; stream.since >= stallBytes {
		stream.since = 0
		stream.timer.Reset(stallAfter)
	}
	return count, err
}

func (stream *watched) Close() error {
	stream.timer.Stop()
	stream.cancel()
	return stream.ReadCloser.Close()
}

// readPinned returns the cluster that this machine was told to belong to, if it was (credential kubermesh.join).
func readPinned(path string) (*join, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	found := &join{}
	if err == nil {
		err = json.Unmarshal(text, found)
	}
	return found, err
}
