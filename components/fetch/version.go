package main

import "strings"

// compareVersions tells whether a version is older (-1) or newer (1) than another (UAPI.10, Version Format Specification, for
// versions of digits, letters, '.' and '~').
func compareVersions(left, right string) int {
	for left != "" || right != "" {
		if order := precedence(left) - precedence(right); order != 0 {
			return sign(order)
		}
		switch {
		case isDigit(left):
			var one, other string
			one, left = piece(left, isDigit)
			other, right = piece(right, isDigit)
			one, other = strings.TrimLeft(one, "0"), strings.TrimLeft(other, "0")
			if len(one) != len(other) {
				return sign(len(one) - len(other))
			}
			if order := strings.Compare(one, other); order != 0 {
				return order
			}
		case isLetter(left):
			var one, other string
			one, left = piece(left, isLetter)
			other, right = piece(right, isLetter)
			if order := strings.Compare(one, other); order != 0 {
				return order
			}
		default:
			left, right = left[1:], right[1:]
		}
	}
	return 0
}

// precedence orders what two versions go on with, where they differ: `1~rc1` is older than `1`, that than `1a`, and `1.1` than `11`.
func precedence(rest string) int {
	switch {
	case strings.HasPrefix(rest, "~"):
		return 0
	case rest == "":
		return 1
	case rest[0] == '.':
		return 2
	case isLetter(rest):
		return 3
	case isDigit(rest):
		return 4
	}
	return 5
}

func piece(text string, belongs func(string) bool) (string, string) {
	end := 0
	for end < len(text) && belongs(text[end:]) {
		end++
	}
	return text[:end], text[end:]
}

func isDigit(text string) bool { return text != "" && text[0] >= '0' && text[0] <= '9' }

func isLetter(text string) bool {
	return text != "" && (text[0]|0x20) >= 'a' && (text[0]|0x20) <= 'z'
}

func sign(number int) int {
	switch {
	case number < 0:
		return -1
	case number > 0:
		return 1
	}
	return 0
}
