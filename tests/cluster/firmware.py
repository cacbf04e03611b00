"""What firmware asks before it boots from the network, run in a stranger's network namespace."""

# A DHCPDISCOVER and, unless nobody answers, a DHCPREQUEST (RFC 2131), from port, hardware address, vendor class, client
# architecture (RFC 4578) and user class (RFC 3004). Shows the lease as JSON, or null.
DHCP4 = """
import json, os, socket, struct, sys
port, vendor, architecture, user = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
mac = bytes.fromhex("525400aabbcc")
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
peer.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, port.encode())
peer.bind(("0.0.0.0", 68))
peer.settimeout(4)
def option(code, data):
    return bytes([code, len(data)]) + data
def ask(kind, *more):
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x4B6D0001, 0, 0x8000) + bytes(16) + mac.ljust(16, b"\\0") + bytes(192)
    options = [option(53, bytes([kind])), option(60, vendor.encode()), option(93, struct.pack("!H", architecture))]
    options += [option(55, bytes([1, 3, 6, 43, 54, 60, 66, 67])), *more]
    if user:
        options.append(option(77, user.encode()))
    peer.sendto(head + b"\\x63\\x82\\x53\\x63" + b"".join(options) + b"\\xff", ("255.255.255.255", 67))
    data = peer.recv(2048)
    found, at = {}, 240
    while data[at] != 255:
        if data[at]:
            found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
            at += 1 + data[at + 1]
        at += 1
    return data, found
try:
    offer, found = ask(1)
    answer, found = ask(3, option(50, offer[16:20]), option(54, found[54]))
except TimeoutError:
    print("null")
    sys.exit()
file = found[67].rstrip(b"\\0") if 67 in found else answer[108:236].rstrip(b"\\0")
print(json.dumps({
    "address": socket.inet_ntoa(answer[16:20]), "server": socket.inet_ntoa(answer[20:24]), "vendor": found.get(60, b"").decode(),
    "file": file.decode(), "router": 3 in found,
}))
"""

# A SOLICIT (RFC 8415) with the architecture of RFC 5970; shows the options of the ADVERTISE that say what to boot, or null.
DHCP6 = """
import json, socket, struct, sys
port, architecture = sys.argv[1], int(sys.argv[2])
def option(code, data):
    return struct.pack("!HH", code, len(data)) + data
duid = struct.pack("!HH", 3, 1) + bytes.fromhex("525400aabbcc")
body = option(1, duid) + option(3, struct.pack("!III", 1, 0, 0)) + option(6, struct.pack("!HHH", 59, 60, 16))
body += option(8, b"\\0\\0") + option(61, struct.pack("!H", architecture))
vendor = b"HTTPClient:Arch:00016" if architecture == 16 else b"PXEClient:Arch:00007"
body += option(16, struct.pack("!IH", 343, len(vendor)) + vendor)
peer = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
peer.bind(("::", 546, 0, socket.if_nametoindex(port)))
peer.settimeout(4)
peer.sendto(b"\\x01\\x4b\\x6d\\x01" + body, ("ff02::1:2", 547, 0, socket.if_nametoindex(port)))
try:
    data = peer.recv(2048)
except TimeoutError:
    print("null")
    sys.exit()
found, at = {}, 4
while at + 4 <= len(data):
    code, length = struct.unpack_from("!HH", data, at)
    found[code] = data[at + 4 : at + 4 + length]
    at += 4 + length
lease = found[3][12:]
print(json.dumps({
    "address": socket.inet_ntop(socket.AF_INET6, lease[4:20]), "url": found.get(59, b"").decode(),
    "vendor": found.get(16, b"").hex(),
}))
"""

# Reads a file by TFTP (RFC 1350) from a server; shows its SHA-256.
TFTP = """
import hashlib, socket, struct, sys
server, name = sys.argv[1:3]
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.settimeout(5)
peer.sendto(b"\\0\\1" + name.encode() + b"\\0octet\\0", (server, 69))
digest = hashlib.sha256()
while True:
    data, sender = peer.recvfrom(2048)
    kind, number = struct.unpack_from("!HH", data)
    assert kind == 3, data
    digest.update(data[4:])
    peer.sendto(struct.pack("!HH", 4, number), sender)
    if len(data) < 516:
        break
print(digest.hexdigest())
"""

# Shows the text at a URL.
READ = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=30) as answer:
    print(answer.read().decode())
"""

# Reads a URL; shows status and SHA-256.
HTTP = """
import hashlib, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=30) as answer:
    print(answer.status, hashlib.sha256(answer.read()).hexdigest())
"""
