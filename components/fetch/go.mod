module kubermesh.local/fetch

go 1.26.0
