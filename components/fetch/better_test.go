package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// cluster is an authority with one node.
type cluster struct {
	name, authority, certificate string
	key                          *ecdsa.PrivateKey
}

func newCluster(t *testing.T, name string) *cluster {
	t.Helper()
	authorityKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	// They are not valid at any time that a machine with a lost clock knows of.
	template := func(number int64, isAuthority bool) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(number), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().AddDate(20, 0, 0),
			NotAfter: time.Now().AddDate(30, 0, 0), IsCA: isAuthority, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	authority := template(1, true)
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, &authorityKey.PublicKey, authorityKey)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, template(2, false), authority, &key.PublicKey, authorityKey)
	if err != nil {
		t.Fatal(err)
	}
	armour := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return &cluster{name, armour(authorityDER), armour(leafDER), key}
}

// offers returns a neighbour of this cluster, as it answers.
func (one *cluster) offers(t *testing.T, version, root string) *source {
	t.Helper()
	found := &source{address: version + one.name + "%eth0", nonce: rand.Text(), join: join{one.name, one.authority}}
	found.offer = offer{Node: one.name + "-1", Version: version, RootHash: root, Certificate: one.certificate}
	found.offer.Join, _ = json.Marshal(found.join)
	joined := sha256.Sum256(found.offer.Join)
	said, _ := json.Marshal(system{version, root, "", hex.EncodeToString(joined[:]), found.nonce})
	found.offer.Statement = statementHead + string(said)
	sum := sha256.Sum256([]byte(found.offer.Statement))
	signature, err := ecdsa.SignASN1(rand.Reader, one.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	found.offer.Signature = base64.StdEncoding.EncodeToString(signature)
	return found
}

func TestBetter(t *testing.T) {
	const ours, theirs, older = "aa", "bb", "cc"
	shop, stranger := newCluster(t, "shop"), newCluster(t, "evil")
	same := shop.offers(t, "1.0", ours)
	old := shop.offers(t, "0.9", older)
	newer := shop.offers(t, "1.1", theirs)
	pinned := &join{shop.name, shop.authority}

	unsigned := shop.offers(t, "9.0", theirs)
	unsigned.offer.Signature = ""
	recorded := shop.offers(t, "9.0", theirs)
	recorded.nonce = rand.Text()
	altered := shop.offers(t, "1.1", theirs)
	altered.offer.Version = "9.0"
	wiping := shop.offers(t, "9.0", theirs)
	wiping.offer.Join = json.RawMessage(`{"install": {"wipe": true}}`)
	foreign := stranger.offers(t, "9.0", theirs)
	foreign.join = same.join
	both := func(sources ...*source) []*source { return sources }

	for name, one := range map[string]struct {
		there  []*source
		pinned *join
		alone  bool
		wanted *source
		// What the kernel was told.
		arguments string
	}{
		"a newer one":                              {both(same, newer), nil, false, newer, ""},
		"the newest":                               {both(same, newer, shop.offers(t, "1.0.1", older)), nil, false, newer, ""},
		"an older one":                             {both(same, old), nil, false, nil, ""},
		"nobody has ours":                          {both(newer), nil, false, nil, ""},
		"nobody has ours for long":                 {both(newer), nil, true, newer, ""},
		"an older one, nobody has ours":            {both(old), nil, true, old, ""},
		"nothing signed":                           {both(same, unsigned), nil, false, nil, ""},
		"an old signature":                         {both(same, recorded), nil, false, nil, ""},
		"another version than signed":              {both(same, altered), nil, false, nil, ""},
		"another credential than signed":           {both(same, wiping), nil, false, nil, ""},
		"a stranger that claims the cluster":       {both(same, foreign), pinned, false, nil, ""},
		"a stranger's":                             {both(same, stranger.offers(t, "9.0", theirs)), pinned, true, nil, ""},
		"two clusters, pinned":                     {both(same, newer, stranger.offers(t, "9.0", theirs)), pinned, false, newer, ""},
		"two clusters, not pinned":                 {both(same, newer, stranger.offers(t, "9.0", theirs)), nil, false, nil, ""},
		"one that could not be fetched":            {both(same, newer), nil, false, nil, "roothash=aa" + triedArgument + theirs},
		"one that could not be fetched, and alone": {both(newer), nil, true, newer, "roothash=aa" + triedArgument + theirs},
		// Both a neighbour with our system, which is public, and one with a newer one are the stranger's.
		"a stranger's twice": {both(same, stranger.offers(t, "1.0", ours), stranger.offers(t, "9.0", theirs)), nil, false, nil, ""},
	} {
		finder := newFinder()
		found := []*source{}
		for _, other := range one.there {
			finder.offers[other.address] = other
			if other.offer.RootHash == ours && !isOfAnother(other, one.pinned) {
				found = append(found, other)
			}
		}
		if one.alone {
			finder.helpedAt = time.Now().Add(-2 * alone)
		}
		got := finder.better("1.0", one.arguments, rootHash{text: ours}, one.pinned, found)
		if got != one.wanted {
			t.Errorf("%s: %v, not %v", name, got, one.wanted)
		}
	}
}
